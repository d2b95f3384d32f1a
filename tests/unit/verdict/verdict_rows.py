"""Rows of a small judged run, for the tests of the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.records import Answer, Judgement, Message, Prompt, text_sha256
from ray_jobs.verdict.verdict import VerdictInputs

METRIC = "correctness"
TRUSTED = {"pairs": 60, "agreement": 0.9, "ci95": (0.8, 0.95), "trusted": True}
UNTRUSTED = {"pairs": 60, "agreement": 0.5, "ci95": (0.38, 0.62), "trusted": False}


def prompt(index: int, source: str = "counting") -> Prompt:
    return Prompt(f"p{index:04d}", source, (Message("user", f"question {index}"),))


def answer(row: Prompt, model: str, text: str | None = "an answer", **fields: Any) -> Answer:
    values: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "prompt_sha256": row.sha256,
        "model_sha256": model,
        "answer": text,
        "num_prompt_tokens": 5,
        "num_cached_tokens": 0,
        "num_answer_tokens": 10,
        "finish_reason": "stop",
        "seconds": 1.0,
        "error": None if text is not None else "timeout",
    }
    return Answer(**(values | fields))


def judgement(
    row_id: str,
    score: int | None,
    expected: float | None = None,
    failure: str | None = None,
    metric: str = METRIC,
) -> Judgement:
    feedback = None if score is None else f"worth {score}"
    return Judgement(row_id, metric, score, expected, feedback, failure, text_sha256("x"), "judge", 0.1)


def inputs(
    base: Sequence[int | None], candidate: Sequence[int | None], sources: Sequence[str] = (), **fields: Any
) -> VerdictInputs:
    """A run with these scores, a prompt each; a score of None is a `no_score` failure."""
    prompts = [prompt(i, sources[i] if sources else "counting") for i in range(len(base))]
    scores: Mapping[str, Sequence[int | None]] = {"base": base, "candidate": candidate}
    values: dict[str, Any] = {
        "run": "local",
        "prompts": prompts,
        "answers": {model: [answer(row, model) for row in prompts] for model in scores},
        "judgements": {
            model: [
                judgement(row.id, score, failure=None if score is not None else "no_score")
                for row, score in zip(prompts, scores[model], strict=True)
            ]
            for model in scores
        },
        "models": {model: {"sha256": model} for model in scores},
        "trust": TRUSTED,
    }
    return VerdictInputs(**(values | fields))
