"""Which pairs each worker computes in each optimiser step.

Every worker derives the same plan from the pairs' lengths and the seed, so none has to ask another.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.errors import ConfigError, DataError
from ray_jobs.orpo.packing import split_by_budget
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.tokens import PairTokens


@dataclass(frozen=True)
class StepPlan:
    """One worker's share of an optimiser step.

    `rows` are groups of indices of pairs, each computed in one forward pass; the totals are over all
    workers and weigh every token and every pair of the step alike, however they are grouped.
    """

    rows: tuple[tuple[int, ...], ...]
    total_pairs: int
    total_nll_tokens: int


def pair_order(num_pairs: int, settings: TrainingSettings) -> list[int]:
    """Indices of the pairs of all steps in order: whole shuffled passes, one after another."""
    needed = settings.num_steps * settings.pairs_per_step
    order: list[int] = []
    for epoch in range(-(-needed // num_pairs)):
        one_pass = list(range(num_pairs))
        random.Random(f"{settings.seed}:{epoch}").shuffle(one_pass)
        order += one_pass
    return order[:needed]


def check_shares(pairs_per_step: int, num_workers: int) -> None:
    """Raises ConfigError when the pairs of a step cannot be shared out evenly."""
    if pairs_per_step % num_workers:
        raise ConfigError(
            f"training.pairs_per_step: {pairs_per_step} is not a multiple of {num_workers} workers"
        )


def plan_steps(
    pairs: Sequence[PairTokens], settings: TrainingSettings, *, rank: int, num_workers: int
) -> list[StepPlan]:
    """The share of worker `rank` in every step.

    All workers get equally many rows in a step, as sharded optimisers need. Raises ConfigError when
    the pairs of a step cannot be shared out evenly, DataError when there are no pairs.
    """
    check_shares(settings.pairs_per_step, num_workers)
    if not pairs:
        raise DataError("no usable training pairs")
    order = pair_order(len(pairs), settings)
    size = settings.pairs_per_step
    steps = [order[start : start + size] for start in range(0, len(order), size)]
    return [_plan_step(pairs, step, settings, rank, num_workers) for step in steps]


def _plan_step(
    pairs: Sequence[PairTokens], step: Sequence[int], settings: TrainingSettings, rank: int, num_workers: int
) -> StepPlan:
    lengths = [pairs[index].num_shared for index in step]
    groups = share_evenly(split_by_budget(lengths, settings.max_batch_tokens), lengths, num_workers)
    rows = tuple(tuple(step[position] for position in group) for group in groups[rank])
    nll_tokens = sum(pairs[index].num_likelihood(settings.learns_prompts) for index in step)
    return StepPlan(rows, len(step), nll_tokens)


def share_evenly(groups: list[list[int]], lengths: Sequence[int], num_workers: int) -> list[list[list[int]]]:
    """Groups for each worker: equally many, and about equally long.

    Splits groups until their number is a multiple of the workers; the number of pairs must be one.
    """
    groups = [list(group) for group in groups]
    while len(groups) % num_workers:
        largest = max(groups, key=lambda group: (len(group) > 1, sum(lengths[i] for i in group)))
        assert len(largest) > 1, "pairs cannot be shared evenly"
        groups.remove(largest)
        groups += [largest[::2], largest[1::2]]
    groups.sort(key=lambda group: -sum(lengths[i] for i in group))
    shares: list[list[list[int]]] = [[] for _ in range(num_workers)]
    for round_start in range(0, len(groups), num_workers):
        # the worker with least work so far takes the longest group of the round
        least_first = sorted(shares, key=lambda share: sum(lengths[i] for group in share for i in group))
        for share, group in zip(least_first, groups[round_start:], strict=False):
            share.append(group)
    return shares
