"""Answers side by side, for people to read."""

from typing import Any

from ray_jobs.records import Answer, Judgement
from ray_jobs.verdict.inputs import MODELS, ScoredRows, VerdictInputs

MAX_CHARACTERS = 20_000
"""Longer texts are cut in the report, and say so."""


def side_by_side(inputs: VerdictInputs, rows: ScoredRows, number: int) -> list[dict[str, Any]]:
    """The largest gains, then the largest losses, each starting with the most extreme; ties by ID."""
    differences = rows.differences.tolist()
    rising = sorted(range(len(differences)), key=lambda index: (differences[index], rows.prompts[index].id))
    num_losses = min(number // 2, len(rising) // 2)
    losses = rising[:num_losses]
    gains = sorted(rising[num_losses:], key=lambda index: (-differences[index], rows.prompts[index].id))[
        : number - num_losses
    ]
    answers = {model: {row.id: row for row in inputs.answers[model]} for model in MODELS}
    judgements = {
        model: {row.id: row for row in inputs.judgements[model] if row.metric == rows.metric}
        for model in MODELS
    }
    return [_example(inputs, rows, index, answers, judgements) for index in [*gains, *losses]]


def _example(
    inputs: VerdictInputs,
    rows: ScoredRows,
    index: int,
    answers: dict[str, dict[str, Answer]],
    judgements: dict[str, dict[str, Judgement]],
) -> dict[str, Any]:
    prompt = rows.prompts[index]
    scores = (rows.base_scores[index], rows.candidate_scores[index])
    return {
        "id": prompt.id,
        "source": prompt.source,
        "messages": [{"role": message.role, "content": _cut(message.content)} for message in prompt.messages],
        "reference": None if prompt.reference is None else _cut(prompt.reference),
        "difference": float(rows.candidate_scores[index] - rows.base_scores[index]),
        **{
            model: {
                "answer": _cut(answers[model][prompt.id].answer or ""),
                "score": float(score),
                "feedback": _feedback(judgements[model][prompt.id]),
                "check": inputs.checks.get(model, {}).get(prompt.id),
            }
            for model, score in zip(MODELS, scores, strict=True)
        },
    }


def _feedback(judgement: Judgement) -> str | None:
    return None if judgement.feedback is None else _cut(judgement.feedback)


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} … [{len(text) - MAX_CHARACTERS} more characters]"
