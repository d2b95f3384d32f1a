"""What judges: the seam between the rubric's side and whatever runs the judge model."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from typing import Literal, Protocol

from ray_jobs.judging.expected import TokenChoice

Finish = Literal["stop", "length", "timeout", "too_long_prompt", "error"]


@dataclass(frozen=True)
class Call:
    """One prompt for the judge. `prompt` is flow-judge's user prompt, before any chat template."""

    id: str
    prompt: str
    seed: int
    temperature: float


@dataclass(frozen=True)
class Completion:
    """What the judge wrote, and nothing else; `tokens` is empty where probabilities are not to be had."""

    id: str
    text: str
    finish: Finish
    seconds: float
    tokens: tuple[TokenChoice, ...] = ()
    error: str | None = None


OnDone = Callable[[Completion], None]


def gathered(
    calls: Sequence[Call], futures: Sequence[Future[Completion]], on_done: OnDone
) -> list[Completion]:
    """The completions of all calls, in their order, each handed to `on_done` as it comes. What has not begun
    when one raises is cancelled."""
    done: dict[str, Completion] = {}
    try:
        for future in as_completed(futures):
            completion = future.result()
            done[completion.id] = completion
            on_done(completion)
    finally:
        for future in futures:
            future.cancel()
    return [done[call.id] for call in calls]


class Backend(Protocol):
    """Runs a judge model."""

    sha256: str
    """Of the judge's file, or of what names it."""
    fingerprint: str
    """Of how it is run, as far as its words depend on it and `JudgeSettings` and `sha256` do not say it."""
    tokenizes: bool
    """Whether this process makes the tokens, so that control tokens in text stay text."""

    def complete(self, calls: Sequence[Call], scores: Sequence[int], on_done: OnDone) -> list[Completion]:
        """The judge's words, in the order of the calls; `on_done` gets each as it ends, in the caller's
        thread.

        `scores` are those that the rubric offers: a backend that can, allows no others.
        """

    def num_prompt_tokens(self, prompt: str) -> int | None:
        """Tokens that a user prompt takes, chat template included; None where they cannot be counted."""


def name_sha256(name: str) -> str:
    """Stands for a judge whose file is not at hand."""
    return hashlib.sha256(name.encode()).hexdigest()
