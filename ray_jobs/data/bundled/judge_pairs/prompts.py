"""What a judge is asked about an answer, made by the judging code itself."""

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from ray_jobs.judging.inputs import InputMaker, JudgeItem, prompt_text
from ray_jobs.judging.metrics import load_metric
from ray_jobs.judging.presets import PRESETS
from ray_jobs.records import Message, Prompt

if TYPE_CHECKING:
    from ray_jobs.judging.flow import Metric

Layout = Literal["rubric_first", "flow_judge", "brief"]
"""The orders that a run knows, and `brief`: inputs and answer alone, without rubric and instructions."""

_INPUT = "# INPUT\n"


def judge_prompt(
    metric: str, layout: Layout, messages: tuple[Message, ...], reference: str, answer: str
) -> str:
    """The text of the judge's user turn."""
    maker, loaded = _metric(metric)
    item = JudgeItem("", Prompt("", "", messages, reference), answer)
    if layout != "brief":
        return prompt_text(loaded, maker(item), layout).strip()
    whole = prompt_text(loaded, maker(item), "rubric_first")
    return whole[whole.index(_INPUT) :].strip()


def verdict_text(score: int) -> str:
    """The judge's whole turn where it scores at once (`judge.feedback: false`)."""
    from ray_jobs.judging.engine_judge import FEEDBACK_START, SCORE_END, SCORE_START

    return FEEDBACK_START.rstrip() + SCORE_START + str(score) + SCORE_END


@lru_cache
def _metric(name: str) -> tuple[InputMaker, "Metric"]:
    return InputMaker(PRESETS[name], {}), load_metric(name)
