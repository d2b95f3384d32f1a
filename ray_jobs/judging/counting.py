"""Counts the judge's prompts with its tokenizer alone, before any answer exists."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.judging.backend import Call, Completion, OnDone
from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.metrics import wants_reference
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.records import Prompt

if TYPE_CHECKING:
    from serving.engine import Tokenizer


class CountingBackend:
    """A judge's tokenizer without its weights: it counts, and completes nothing."""

    sha256 = "0" * 64
    fingerprint = ""
    tokenizes = True

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer

    def num_prompt_tokens(self, prompt: str) -> int:
        return len(self._tokenizer.chat.render([{"role": "user", "content": prompt.strip()}]))

    def complete(self, calls: Sequence[Call], scores: Sequence[int], on_done: OnDone) -> list[Completion]:
        raise NotImplementedError("a tokenizer judges nothing")


def check_context(
    settings: JudgeSettings,
    judge_file: Path,
    prompts: Sequence[Prompt],
    known: Sequence[JudgeItem],
    max_answer_tokens: int,
) -> None:
    """Raises DataError that names the rows which leave no room in the judge's context.

    `prompts` are counted with an answer of `max_answer_tokens`, `known` items with the answers they have, by
    the metrics that they can be judged by.
    """
    from serving.engine import Tokenizer

    with Tokenizer.open(judge_file) as tokenizer:
        for metric in settings.metrics:
            judge = Judge(CountingBackend(tokenizer), settings, metric)
            judge.check_context([JudgeItem(prompt.id, prompt, "") for prompt in prompts], max_answer_tokens)
            compares = wants_reference(judge.metric, settings.inputs)
            judge.check_context([item for item in known if item.prompt.reference is not None or not compares])
