"""Answers side by side, for people to read."""

from typing import Any

import numpy as np

from ray_jobs.verdict.facts import RIGHT, UNCHECKED, Texts
from ray_jobs.verdict.ids import Rows
from ray_jobs.verdict.inputs import MODELS, VerdictInputs
from ray_jobs.verdict.scored import ScoredRows
from ray_jobs.verdict.statistics import Floats

MAX_CHARACTERS = 20_000
"""Longer texts are cut in the report, and say so."""


def side_by_side(inputs: VerdictInputs, rows: ScoredRows, number: int) -> list[dict[str, Any]]:
    """The largest gains, then the largest losses, each starting with the most extreme; ties by ID."""
    if not number:
        return []
    chosen = {rows.id(row): row for row in _extremes(rows.differences, number).tolist()}
    texts = inputs.texts(chosen.keys(), rows.metric)
    return [_example(inputs, rows, row, texts[row_id]) for row_id, row in chosen.items()]


def _extremes(differences_B: Floats, number: int) -> Rows:
    """Rows to show; they stand by rising ID, so that stable sorts break ties by it."""
    rising_B = np.argsort(differences_B, kind="stable")
    losses = rising_B[: min(number // 2, differences_B.size // 2)]
    rest_B = np.sort(rising_B[losses.size :])
    gains = rest_B[np.argsort(-differences_B[rest_B], kind="stable")][: number - losses.size]
    return np.concatenate([gains, losses])


def _example(inputs: VerdictInputs, rows: ScoredRows, row: int, texts: Texts) -> dict[str, Any]:
    prompt = texts.prompt
    scores = (rows.base_scores[row], rows.candidate_scores[row])
    return {
        "id": prompt.id,
        "source": prompt.source,
        "messages": [{"role": message.role, "content": _cut(message.content)} for message in prompt.messages],
        "reference": None if prompt.reference is None else _cut(prompt.reference),
        "difference": float(rows.candidate_scores[row] - rows.base_scores[row]),
        **{
            model: {
                "answer": _cut(texts.answers[model] or ""),
                "score": float(score),
                "feedback": None if (said := texts.feedback[model]) is None else _cut(said),
                "check": _check(inputs, model, int(rows.prompts_B[row])),
            }
            for model, score in zip(MODELS, scores, strict=True)
        },
    }


def _check(inputs: VerdictInputs, model: str, place: int) -> bool | None:
    """What a program says of the answer to the prompt at `place`."""
    checks = inputs.checks.get(model)
    if checks is None or checks[place] == UNCHECKED:
        return None
    return bool(checks[place] == RIGHT)


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} … [{len(text) - MAX_CHARACTERS} more characters]"
