"""Rows of a small judged run, for the tests of the verdict."""

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np

from ray_jobs.records import Answer, Judgement, Message, Prompt, text_sha256
from ray_jobs.verdict.facts import (
    SCORE_COLUMNS,
    UNCHECKED,
    AnswerFacts,
    Checks,
    PromptFacts,
    Scores,
    Texts,
    scores_by_metric,
)
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


def answer_facts(rows: Mapping[str, Sequence[Answer]]) -> dict[str, AnswerFacts]:
    """By model, as the verdict keeps them."""
    return {model: AnswerFacts.of(found) for model, found in rows.items()}


def scores(rows: Mapping[str, Sequence[Judgement]]) -> dict[str, dict[str, Scores]]:
    """By model and metric, as the verdict keeps them."""
    return {model: scores_by_metric(map(attrgetter(*SCORE_COLUMNS), found)) for model, found in rows.items()}


def checks_of(prompts: PromptFacts, right: Mapping[str, Mapping[str, bool]]) -> dict[str, Checks]:
    """By model; `right`: prompt ID -> whether its answer is right, where a program can tell."""
    return {
        model: np.array([found.get(row_id, UNCHECKED) for row_id in prompts.ids], dtype=np.int8)
        for model, found in right.items()
    }


def given(
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[Answer]],
    judgements: Mapping[str, Sequence[Judgement]],
    checks: Mapping[str, Mapping[str, bool]] = MappingProxyType({}),
    judged: Collection[str] | None = None,
    **fields: Any,
) -> VerdictInputs:
    """Whole rows in memory in place of a run's files; `checks` and `judged` by prompt ID."""

    def texts(ids: Collection[str], metric: str) -> dict[str, Texts]:
        wrote = {model: {row.id: row.answer for row in rows} for model, rows in answers.items()}
        said = {
            model: {row.id: row.feedback for row in rows if row.metric == metric}
            for model, rows in judgements.items()
        }
        return {
            row.id: Texts(
                row,
                {model: wrote[model][row.id] for model in wrote},
                {model: said[model].get(row.id) for model in said},
            )
            for row in prompts
            if row.id in ids
        }

    facts = PromptFacts.of(prompts)
    values: dict[str, Any] = {
        "run": "local",
        "prompts": facts,
        "answers": answer_facts(answers),
        "judgements": scores(judgements),
        "checks": checks_of(facts, checks),
        "judged": None if judged is None else np.array([row.id in judged for row in prompts], dtype=np.bool_),
        "models": {model: {"sha256": model} for model in answers},
        "trust": TRUSTED,
        "texts": texts,
    }
    return VerdictInputs(**(values | fields))


def inputs(
    base: Sequence[int | None],
    candidate: Sequence[int | None],
    sources: Sequence[str] = (),
    text: str = "an answer",
    **fields: Any,
) -> VerdictInputs:
    """A run with these scores, a prompt each; a score of None is a `no_score` failure."""
    prompts = [prompt(i, sources[i] if sources else "counting") for i in range(len(base))]
    both: Mapping[str, Sequence[int | None]] = {"base": base, "candidate": candidate}
    return given(
        prompts,
        {model: [answer(row, model, text) for row in prompts] for model in both},
        {
            model: [
                judgement(row.id, score, failure=None if score is not None else "no_score")
                for row, score in zip(prompts, both[model], strict=True)
            ]
            for model in both
        },
        **fields,
    )
