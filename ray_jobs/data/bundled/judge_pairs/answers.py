"""Answers of every kind, and the score that each deserves on each scale."""

from collections.abc import Mapping

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs.manners import other_form, wordy
from ray_jobs.data.bundled.judge_pairs.mistakes import near_miss, partial, wrong
from ray_jobs.data.bundled.judge_pairs.task import JudgedTask

SCORES: Mapping[str, Mapping[str, int]] = {
    "RESPONSE_CORRECTNESS_5POINT": {
        "exact": 5, "form": 4, "wordy": 4, "partial": 3,
        "near": 2, "wordy_near": 2, "wrong": 1, "wordy_wrong": 1,
    },
    "RESPONSE_CORRECTNESS_3POINT": {
        "exact": 3, "form": 2, "wordy": 2, "partial": 2,
        "near": 1, "wordy_near": 1, "wrong": 1, "wordy_wrong": 1,
    },
    "RESPONSE_CORRECTNESS_BINARY": {
        "exact": 1, "wordy": 0, "partial": 0, "near": 0, "wordy_near": 0, "wrong": 0, "wordy_wrong": 0,
    },
}  # fmt: skip
"""Metric -> kind of answer -> score. The binary rubric says nothing clear of another form."""

_WRONG = ("wrong", "wrong", "wrong", "wordy_wrong")
_NEAR = ("near", "near", "near", "wordy_near")
SLOTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "RESPONSE_CORRECTNESS_5POINT": (
        ("exact",),
        ("form", "form", "wordy", "wordy", "wordy"),
        (*_NEAR, *_NEAR, "partial", "partial", "partial"),
        (*_WRONG, "partial"),
    ),
    "RESPONSE_CORRECTNESS_3POINT": (("exact",), ("form", "wordy", "partial"), (*_NEAR, *_WRONG)),
    "RESPONSE_CORRECTNESS_BINARY": (("exact",), ("wordy", "wordy", "partial", *_NEAR, *_WRONG)),
}
"""Metric -> for each answer to one task, the kinds that it is drawn from. Scores come out balanced."""


def answer_of(kind: str, draws: Draws, task: JudgedTask, other: JudgedTask) -> str:
    """An answer of a kind; what is meant to differ from the right answer does."""
    if kind == "exact":
        return task.right + draws.pick(("\n", " ")) if draws.chance(0.04) else task.right
    for _ in range(20):
        text = _made(kind, draws, task, other)
        if text.strip() != task.right.strip():
            return text
    return f"{task.right}{task.right}" if kind in ("form", "wordy", "partial") else f"not {task.right}"


def _made(kind: str, draws: Draws, task: JudgedTask, other: JudgedTask) -> str:
    if kind == "form":
        return other_form(draws, task.right)
    if kind == "wordy":
        return wordy(draws, task.what, task.right)
    if kind == "partial":
        return partial(draws, task)
    if kind == "wrong":
        return wrong(draws, task, other)
    inside = near_miss(draws, task) if kind.endswith("near") else other.right
    return inside if kind == "near" else wordy(draws, task.what, inside)
