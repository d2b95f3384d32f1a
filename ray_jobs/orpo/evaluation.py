"""Scoring held-out pairs with the packed step.

Legend: P pairs in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_jobs.orpo.loss import log_odds_ratio
from ray_jobs.orpo.packing import pack, split_by_budget
from ray_jobs.orpo.plan import share_evenly
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


@torch.no_grad()
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
    """Score all pairs, shared out over the workers; every worker gets all scores.

    `model` answers `model(packed=…)` (see `enable_packed_step`); it is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    rows = _rows_of_worker(pairs, max_batch_tokens, rank, num_workers)
    scores = torch.zeros(len(pairs), 4, dtype=torch.float64)
    for row in rows:
        packed = pack([pairs[index] for index in row], device, learns_prompts=learns_prompts)
        result = model(packed=packed)
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


def _summed_over_workers(scores: Tensor, device: torch.device, num_workers: int) -> Tensor:
    if num_workers == 1:
        return scores
    on_device = scores.to(device)
    torch.distributed.all_reduce(on_device)
    return on_device.cpu()
