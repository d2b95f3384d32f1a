"""Scoring held-out pairs.

Legend: P pairs in all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_jobs.orpo.loss import log_odds_ratio
from ray_jobs.orpo.packing import pack, split_by_budget
from ray_jobs.orpo.plan import share_evenly
from ray_jobs.orpo.step import PairLogps
from ray_jobs.orpo.tokens import PairTokens


@dataclass(frozen=True)
class PairScores:
    """Of every pair: mean log-probability per token of either answer, and the nll sum (fp64, on CPU)."""

    chosen_P: Tensor
    rejected_P: Tensor
    nll_sum_P: Tensor
    num_nll_tokens: int

    def figures(self, beta: float) -> dict[str, float]:
        """The held-out figures of Metrics, computed as if all pairs were one batch."""
        log_odds_P = log_odds_ratio(self.chosen_P, self.rejected_P)
        nll = self.nll_sum_P.sum().item() / self.num_nll_tokens
        penalty = torch.nn.functional.logsigmoid(log_odds_P).mean().item()
        return {
            "heldout_loss": nll - beta * penalty,
            "heldout_nll": nll,
            "heldout_accuracy": (self.chosen_P > self.rejected_P).double().mean().item(),
            "heldout_margin": (self.chosen_P - self.rejected_P).mean().item(),
            "heldout_log_odds": log_odds_P.mean().item(),
        }


def score_pairs(
    model: nn.Module,
    pairs: Sequence[PairTokens],
    *,
    max_batch_tokens: int,
    device: torch.device,
    rank: int = 0,
    num_workers: int = 1,
    learns_prompts: bool = True,
) -> PairScores:
    """Score all pairs with the packed step, shared out over the workers; every worker gets all scores.

    `model` answers `model(packed=…)` (see `enable_packed_step`); it is left in the mode it was in.
    """

    def packed_logps(model: nn.Module, row: Sequence[PairTokens]) -> PairLogps:
        logps: PairLogps = model(packed=pack(row, device, learns_prompts=learns_prompts))
        return logps

    rows = _rows_of_worker(pairs, max_batch_tokens, rank, num_workers)
    return score_rows(
        model,
        pairs,
        rows,
        packed_logps,
        device=device,
        num_workers=num_workers,
        learns_prompts=learns_prompts,
    )


def score_rows(
    model: nn.Module,
    pairs: Sequence[PairTokens],
    rows: Sequence[Sequence[int]],
    logps_of: Callable[[nn.Module, Sequence[PairTokens]], PairLogps],
    *,
    device: torch.device,
    num_workers: int = 1,
    learns_prompts: bool = True,
) -> PairScores:
    """The scores of all pairs, of which this worker computes those in its `rows` of indices."""
    was_training = model.training
    model.eval()
    scores = torch.zeros(len(pairs), 4, dtype=torch.float64)
    for row in rows:
        with torch.no_grad():
            result = logps_of(model, [pairs[index] for index in row])
        block = torch.stack([result.chosen_B, result.rejected_B, result.nll_sum_B], dim=1).double().cpu()
        scores.index_add_(0, torch.tensor(row), torch.cat([block, torch.ones(len(row), 1)], dim=1))
    model.train(was_training)
    scores = _summed_over_workers(scores, device, num_workers)
    scores = scores[:, :3] / scores[:, 3:]
    nll_tokens = sum(pair.num_likelihood(learns_prompts) for pair in pairs)
    return PairScores(scores[:, 0], scores[:, 1], scores[:, 2], nll_tokens)


def _rows_of_worker(
    pairs: Sequence[PairTokens], max_batch_tokens: int, rank: int, num_workers: int
) -> list[list[int]]:
    """As many rows for every worker; a pair may be scored twice to come out even."""
    indices = list(range(len(pairs)))
    indices += indices[:1] * (-len(indices) % num_workers)
    lengths = [pairs[index].num_shared for index in indices]
    shares = share_evenly(split_by_budget(lengths, max_batch_tokens), lengths, num_workers)
    return [[indices[position] for position in row] for row in shares[rank]]


def batches_of_worker(num_pairs: int, most: int, rank: int, num_workers: int) -> list[list[int]]:
    """Batches of up to `most` pairs, as many for every worker.

    Where there are fewer pairs than batches, the first one is scored again, alone.
    """
    num_batches = num_workers * -(-num_pairs // (most * num_workers))
    indices = [*range(num_pairs), *[0] * (num_batches - num_pairs)]
    return [indices[number::num_batches] for number in range(rank, num_batches, num_workers)]


def _summed_over_workers(scores: Tensor, device: torch.device, num_workers: int) -> Tensor:
    if num_workers == 1:
        return scores
    on_device = scores.to(device)
    torch.distributed.all_reduce(on_device)
    return on_device.cpu()
