"""Answers side by side, for people to read."""

from typing import Any

from ray_jobs.verdict.facts import Texts
from ray_jobs.verdict.inputs import MODELS, ScoredRows, VerdictInputs

MAX_CHARACTERS = 20_000
"""Longer texts are cut in the report, and say so."""


def side_by_side(inputs: VerdictInputs, rows: ScoredRows, number: int) -> list[dict[str, Any]]:
    """The largest gains, then the largest losses, each starting with the most extreme; ties by ID."""
    if not number:
        return []
    differences = rows.differences.tolist()
    rising = sorted(range(len(differences)), key=lambda index: (differences[index], rows.prompts[index].id))
    num_losses = min(number // 2, len(rising) // 2)
    losses = rising[:num_losses]
    gains = sorted(rising[num_losses:], key=lambda index: (-differences[index], rows.prompts[index].id))[
        : number - num_losses
    ]
    chosen = [*gains, *losses]
    texts = inputs.texts({rows.prompts[index].id for index in chosen}, rows.metric)
    return [_example(inputs, rows, index, texts[rows.prompts[index].id]) for index in chosen]


def _example(inputs: VerdictInputs, rows: ScoredRows, index: int, texts: Texts) -> dict[str, Any]:
    prompt = texts.prompt
    scores = (rows.base_scores[index], rows.candidate_scores[index])
    return {
        "id": prompt.id,
        "source": prompt.source,
        "messages": [{"role": message.role, "content": _cut(message.content)} for message in prompt.messages],
        "reference": None if prompt.reference is None else _cut(prompt.reference),
        "difference": float(rows.candidate_scores[index] - rows.base_scores[index]),
        **{
            model: {
                "answer": _cut(texts.answers[model] or ""),
                "score": float(score),
                "feedback": None if (said := texts.feedback[model]) is None else _cut(said),
                "check": inputs.checks.get(model, {}).get(prompt.id),
            }
            for model, score in zip(MODELS, scores, strict=True)
        },
    }


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} … [{len(text) - MAX_CHARACTERS} more characters]"
