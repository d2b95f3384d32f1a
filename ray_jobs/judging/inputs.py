"""Rows as flow-judge's inputs, and its prompt text made of them.

A conversation of several turns becomes the query with its roles shown; a single user turn stands alone, as
flow-judge's own examples have it. Everything that comes from data or from a model passes the Neutraliser,
and answers lose the verdicts and rubrics that they forge.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ray_jobs.errors import DataError
from ray_jobs.judging.forged import asked_for, without_forged
from ray_jobs.judging.metrics import input_parts, input_text
from ray_jobs.judging.neutral import Neutraliser
from ray_jobs.judging.presets import MetricOutline
from ray_jobs.judging.settings import InputPart, PromptOrder
from ray_jobs.records import Prompt

if TYPE_CHECKING:
    from ray_jobs.judging.flow import EvalInput, Metric


@dataclass(frozen=True)
class JudgeItem:
    """One answer to judge; `id` names it among the items, the prompt carries the reference."""

    id: str
    prompt: Prompt
    answer: str


class InputMaker:
    """Makes flow-judge's EvalInput of an item, by one metric."""

    def __init__(
        self, metric: MetricOutline, chosen: Mapping[str, InputPart], *, control_tokens: bool = False
    ) -> None:
        self._metric = metric
        self._parts = input_parts(metric, chosen)
        self._neutral = Neutraliser(metric, control_tokens=control_tokens)
        self._own_tags = metric.tags

    def __call__(self, item: JudgeItem) -> "EvalInput":
        """Raises DataError that names metric, input and row when the row lacks what the metric needs."""
        from ray_jobs.judging.flow import EvalInput

        texts = {name: self._text(item, name) for name in self._metric.required_inputs}
        answer = item.answer if asked_for(texts.values()) else without_forged(item.answer, self._own_tags)
        return EvalInput(
            inputs=[{name: self._neutral(text)} for name, text in texts.items()],
            output={self._metric.required_output: self._neutral(answer)},
        )

    def _text(self, item: JudgeItem, name: str) -> str:
        text = input_text(item.prompt, self._parts[name])
        if text is None:
            raise DataError(
                f"row {item.id}: metric {self._metric.name!r} needs {name!r}, which the row lacks"
            )
        return text


def prompt_text(metric: "Metric", eval_input: "EvalInput", order: PromptOrder = "flow_judge") -> str:
    """flow-judge's user prompt: its own (its FlowJudge builds the same), or with the rubric first."""
    from ray_jobs.judging.flow import format_rubric, format_user_prompt, format_vars

    variables = {
        "INPUTS": format_vars(eval_input.inputs),
        "OUTPUT": format_vars([eval_input.output]),
        "EVALUATION_CRITERIA": metric.criteria,
        "RUBRIC": format_rubric(metric.rubric),
    }
    if order == "flow_judge":
        text: str = format_user_prompt(variables)
        return text
    return _rubric_first(with_inputs=bool(eval_input.inputs)).format(**variables)


@lru_cache(maxsize=2)
def _rubric_first(*, with_inputs: bool) -> str:
    """flow-judge's template with its sections in another order: what all rows share, then inputs and output.

    A causal model's work on a prompt can be shared up to the first difference; flow-judge's own order has the
    row's inputs before its rubric and instructions, which are most of the text. Its closing line stays last.
    """
    from ray_jobs.judging.flow import USER_PROMPT_NO_INPUTS_TEMPLATE, USER_PROMPT_TEMPLATE

    template = USER_PROMPT_TEMPLATE if with_inputs else USER_PROMPT_NO_INPUTS_TEMPLATE
    body, _, closing = template.rpartition("\n\n")
    sections = re.split(r"^(?=# )", body, flags=re.MULTILINE)
    of_row = [text for text in sections if text.startswith(("# INPUT\n", "# OUTPUT\n"))]
    shared = [text for text in sections if text and text not in of_row]
    return "\n\n".join(text.strip() for text in (*shared, *of_row, closing))
