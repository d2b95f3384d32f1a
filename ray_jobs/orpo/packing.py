"""Which pairs are computed together, and where each token of them lies.

A pair lies in a row as prompt, chosen, rejected; pairs follow each other without padding. Rejected
answers take the positions right after the prompt again, as if the chosen answer were not there.

Legend: T tokens of a row, B pairs in it, N predicted tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_jobs.orpo.tokens import PairTokens

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """Where a pair lies in its row, in tokens."""

    start: int
    num_prompt: int
    num_chosen: int
    num_rejected: int

    @property
    def answers(self) -> int:
        """Where the chosen answer starts."""
        return self.start + self.num_prompt

    @property
    def rejected(self) -> int:
        """Where the rejected answer starts."""
        return self.answers + self.num_chosen

    @property
    def end(self) -> int:
        return self.rejected + self.num_rejected


@dataclass(frozen=True)
class PackedPairs:
    """Pairs in one row, ready for a model.

    `predictor_N` is the position whose hidden state predicts `label_N`; `answer_N` says whose answer the
    label belongs to: b for pair b's chosen answer, B + b for its rejected one, 2B + b for its prompt.
    """

    spans: tuple[Span, ...]
    input_ids_T: Tensor
    position_ids_T: Tensor
    predictor_N: Tensor
    label_N: Tensor
    answer_N: Tensor
    learns_prompts: bool = True
    """Whether the prompts' tokens are among those predicted."""

    @property
    def num_pairs(self) -> int:
        return len(self.spans)

    @property
    def num_tokens(self) -> int:
        return self.spans[-1].end

    @property
    def num_unshared_tokens(self) -> int:
        """The same pairs with the prompt counted for each answer: what TRL would compute without padding."""
        return self.num_tokens + sum(span.num_prompt for span in self.spans)

    @property
    def num_nll_tokens(self) -> int:
        """Predicted tokens of prompts and chosen answers; the first token of a prompt is not predicted."""
        of_prompts = sum(span.num_prompt - 1 for span in self.spans) if self.learns_prompts else 0
        return of_prompts + sum(span.num_chosen for span in self.spans)

    @cached_property
    def num_answer_tokens_2B(self) -> Tensor:
        """Tokens of every chosen, then of every rejected answer."""
        chosen = [span.num_chosen for span in self.spans]
        rejected = [span.num_rejected for span in self.spans]
        return torch.tensor(chosen + rejected, dtype=torch.float32, device=self.label_N.device)


def pack(
    pairs: Sequence[PairTokens], device: torch.device | str = "cpu", *, learns_prompts: bool = True
) -> PackedPairs:
    """Lay pairs into one row, in the order given."""
    assert pairs, "a row holds at least one pair"
    spans: list[Span] = []
    ids: list[int] = []
    for pair in pairs:
        spans.append(Span(len(ids), len(pair.prompt), len(pair.chosen), len(pair.rejected)))
        ids += [*pair.prompt, *pair.chosen, *pair.rejected]
    ids_T = np.array(ids)
    positions_T, predictor_N, label_N, answer_N = (
        np.concatenate(parts) for parts in zip(*_numbers_of(spans, learns_prompts), strict=True)
    )
    input_ids_T, position_ids_T, predictors, labels, answers = (
        to_device(array, device) for array in (ids_T, positions_T, predictor_N, ids_T[label_N], answer_N)
    )
    return PackedPairs(tuple(spans), input_ids_T, position_ids_T, predictors, labels, answers, learns_prompts)


def _numbers_of(
    spans: Sequence[Span], learns_prompts: bool
) -> Iterator[tuple[Numbers, Numbers, Numbers, Numbers]]:
    """For each pair its tokens' positions; and for each predicted token the place that predicts it, its own
    place, and its answer."""
    for pair, span in enumerate(spans):
        places = np.arange(span.start, span.end)
        positions = places - span.start
        positions[span.rejected - span.start :] -= span.num_chosen
        first = 0 if learns_prompts else span.num_prompt - 1
        predictors = places[first:-1].copy()
        # the last prompt token predicts the first token of both answers
        predictors[span.rejected - span.start - first - 1] = span.answers - 1
        answers = (2 * len(spans) + pair, pair, len(spans) + pair)
        counts = (span.num_prompt - 1 - first, span.num_chosen, span.num_rejected)
        yield positions, predictors, places[first + 1 :], np.repeat(answers, counts)


def to_device(numbers: Numbers, device: torch.device | str) -> Tensor:
    """Whole numbers as a tensor, copied to a GPU while it still computes."""
    tensor = torch.from_numpy(numbers.astype(np.int64, copy=False))
    is_cuda = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if is_cuda else tensor.to(device)


def split_by_budget(num_tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of pairs, grouped so that no group of several exceeds the budget.

    First fit, longest first: at most 11/9 of the fewest groups possible, plus one (Johnson 1973).
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i)):
        for group, free in enumerate(room):
            if num_tokens[index] <= free:
                groups[group].append(index)
                room[group] -= num_tokens[index]
                break
        else:
            groups.append([index])
            room.append(budget - num_tokens[index])
    return groups
