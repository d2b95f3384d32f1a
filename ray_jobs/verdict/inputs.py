"""What a verdict is made from, checked and lined up row by row."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np

from ray_jobs.errors import DataError, StageFailed
from ray_jobs.verdict.facts import AnswerFacts, FetchTexts, PromptFacts, Score
from ray_jobs.verdict.statistics import Floats, Labels

BASE, CANDIDATE = "base", "candidate"
MODELS = (BASE, CANDIDATE)

Row = TypeVar("Row", AnswerFacts, Score)


@dataclass(frozen=True)
class VerdictInputs:
    """What all earlier stages found. Mappings by model have the keys `base` and `candidate`."""

    run: str
    prompts: Sequence[PromptFacts]
    answers: Mapping[str, Sequence[AnswerFacts]]
    judgements: Mapping[str, Sequence[Score]]
    models: Mapping[str, Mapping[str, Any]]
    """Manifests; `sha256` is used."""
    texts: FetchTexts
    """For the answers that the report shows."""
    trust: Mapping[str, Any] | None = None
    """The judge on known pairs: pairs, agreement, ci95, trusted, and what else is worth reporting; the same
    for each metric in `by_metric`."""
    trials: Sequence[Mapping[str, Any]] = ()
    data_report: Mapping[str, Any] = field(default_factory=dict)
    timings_s: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    """Per model: prompt ID -> whether a program finds the answer right; absent where none can tell."""
    best_trial: str | None = None
    """Trial that the candidate is made from; null: the one with the best held-out accuracy."""
    objective: str = "accuracy"
    """What the search ranked trials by, on held-out pairs: accuracy, nll, loss or margin."""
    look: int | None = None
    """Which look of `sequential.looks` this is, from 0; null is the last, with all rows in."""
    judged: Container[str] | None = None
    """IDs of the prompts whose answers this look judges; null: all. Guards see all answers."""
    num_candidates: int = 1
    """Candidates that are judged against this base."""
    rivals: "Rivals | None" = None
    """What the other candidates' tests say, for Holm's correction over all of them."""
    score_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric -> lowest and highest score of its rubric; else the ones that occur."""

    def of_look(self) -> "VerdictInputs":
        """The rows of this look alone."""
        judged = self.judged
        if judged is None:
            return self
        answers = {model: [row for row in rows if row.id in judged] for model, rows in self.answers.items()}
        prompts = [prompt for prompt in self.prompts if prompt.id in judged]
        return replace(self, prompts=prompts, answers=answers, judged=None)


@dataclass(frozen=True)
class Rivals:
    """Uncorrected p-values of the other candidates: of their metrics, and of their program checks."""

    metrics: tuple[float, ...]
    program_checks: tuple[float, ...]


@dataclass(frozen=True)
class ScoredRows:
    """One metric's rows that both models have a score for, by rising prompt ID.

    Arrays have one value a row, B of them; lengths are in characters.
    """

    metric: str
    prompts: tuple[PromptFacts, ...]
    base_scores: Floats
    candidate_scores: Floats
    base_lengths: Floats
    candidate_lengths: Floats
    num_expected: int
    """Rows compared by the expected score; the others by the sampled one."""
    num_prompts: int
    failures: Mapping[str, Mapping[str, int]]
    """Per model: reason -> rows without a score."""
    failure_shares: Mapping[str, float]
    """Per model: the share of all answers that are missing, or fail to be judged as often as this look's."""
    score_range: tuple[float, float]

    @property
    def differences(self) -> Floats:
        return self.candidate_scores - self.base_scores

    @property
    def length_differences(self) -> Floats:
        return self.candidate_lengths - self.base_lengths


def common_backend(inputs: VerdictInputs) -> str | None:
    """The engine's backend that wrote all answers; None where rows do not tell.

    Raises DataError where two did: their kernels round differently, so that models would not be all that
    differs.
    """
    rows = [row for model in MODELS for row in inputs.answers[model]]
    found = sorted({row.backend for row in rows if row.backend is not None})
    if len(found) > 1:
        raise DataError(f"answers: written by {' and '.join(found)}: one backend must write all of a run")
    return found[0] if found else None


def metrics_of(inputs: VerdictInputs, wanted: Sequence[str]) -> tuple[str, ...]:
    """The metrics of the decision, the leading one first.

    Raises DataError when a wanted metric was not judged, or none was.
    """
    judged = list(dict.fromkeys(row.metric for model in MODELS for row in inputs.judgements[model]))
    if not judged:
        raise DataError("no judgements: neither model's answers were judged")
    for metric in wanted:
        if metric not in judged:
            raise DataError(f"verdict.metrics: {metric!r} was not judged; judged: {', '.join(judged)}")
    return tuple(wanted or judged)


def scored_rows(inputs: VerdictInputs, metric: str) -> ScoredRows:
    """The rows of this look that both models have a score for.

    Raises DataError for unknown or repeated IDs, StageFailed when there is nothing to compare.
    """
    whole, inputs = inputs, inputs.of_look()
    prompts = {prompt.id: prompt for prompt in sorted(inputs.prompts, key=lambda prompt: prompt.id)}
    if not prompts or len(prompts) != len(inputs.prompts):
        raise DataError(
            "evaluation prompts: none" if not prompts else "evaluation prompts: an ID stands twice"
        )
    answers = {model: _by_id(inputs.answers[model], f"{model} answers", prompts) for model in MODELS}
    judgements = {
        model: _by_id(
            [row for row in inputs.judgements[model] if row.metric == metric],
            f"{model} judgements by {metric}",
            prompts,
        )
        for model in MODELS
    }
    failures = {
        model: {key: _failure(answers[model].get(key), judgements[model].get(key)) for key in prompts}
        for model in MODELS
    }
    both = [key for key in prompts if all(failures[model][key] is None for model in MODELS)]
    counts = {model: _counted(failures[model].values()) for model in MODELS}
    if not both:
        raise StageFailed(_nothing_to_compare(metric, counts, len(prompts)))
    base_B, candidate_B, num_expected = _scores([[judgements[m][key] for m in MODELS] for key in both])
    return ScoredRows(
        metric=metric,
        prompts=tuple(prompts[key] for key in both),
        base_scores=base_B,
        candidate_scores=candidate_B,
        base_lengths=_lengths(answers[BASE], both),
        candidate_lengths=_lengths(answers[CANDIDATE], both),
        num_expected=num_expected,
        num_prompts=len(prompts),
        failures=counts,
        failure_shares={model: _failure_share(whole, inputs, model, counts[model]) for model in MODELS},
        score_range=inputs.score_ranges.get(metric) or _range(base_B, candidate_B),
    )


def cluster_labels(prompts: Sequence[PromptFacts], by: Literal["none", "source", "prompt"]) -> Labels | None:
    """Which cluster each row is of, as whole numbers that do not depend on the order of the rows."""
    if by == "none":
        return None
    keys: list[Any] = [prompt.source if by == "source" else prompt.opening for prompt in prompts]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _by_id(rows: Iterable[Row], what: str, prompts: Mapping[str, PromptFacts]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        if row.id not in prompts:
            raise DataError(f"{what}: row {row.id!r} belongs to no evaluation prompt")
        if row.id in found:
            raise DataError(f"{what}: row {row.id!r} stands twice")
        found[row.id] = row
    return found


def _failure(answer: AnswerFacts | None, judgement: Score | None) -> str | None:
    """Why a row has no score, or None when it has one."""
    if answer is None:
        return "no answer row"
    if answer.characters is None:
        return f"answer: {answer.error}"
    if judgement is None:
        return "not judged"
    return None if judgement.score is not None else judgement.failure or "no_score"


def _failure_share(
    whole: VerdictInputs, look: VerdictInputs, model: str, failures: Mapping[str, int]
) -> float:
    """Of all rows: those without an answer, and as many of the others as have no score at this look."""
    num_rows, num_looked = len(whole.prompts), len(look.prompts)
    missing = num_rows - _num_answered(whole, model)
    answered = _num_answered(look, model)
    unscored = sum(failures.values()) - (num_looked - answered)
    if answered == 0:
        return 1.0
    return (missing * answered + (num_rows - missing) * unscored) / (num_rows * answered)


def _num_answered(inputs: VerdictInputs, model: str) -> int:
    return sum(row.characters is not None for row in inputs.answers[model])


def _counted(reasons: Iterable[str | None]) -> dict[str, int]:
    counts = Counter(reason for reason in reasons if reason is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _nothing_to_compare(metric: str, counts: Mapping[str, Mapping[str, int]], num_prompts: int) -> str:
    parts = []
    for model in MODELS:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in counts[model].items())
        scored = num_prompts - sum(counts[model].values())
        parts.append(f"{model} {scored} of {num_prompts}" + (f" ({reasons})" if reasons else ""))
    return f"no prompt is scored for both models by {metric}, so there is no verdict: " + "; ".join(parts)


def _scores(rows: Sequence[Sequence[Score]]) -> tuple[Floats, Floats, int]:
    """Base and candidate scores; a row uses expected scores where both of its judgements have one."""
    pairs, num_expected = [], 0
    for base, candidate in rows:
        if base.expected_score is not None and candidate.expected_score is not None:
            pairs.append((base.expected_score, candidate.expected_score))
            num_expected += 1
        else:
            pairs.append((float(base.score or 0), float(candidate.score or 0)))
    scores = np.array(pairs, dtype=np.float64)
    if not np.isfinite(scores).all():
        row = rows[int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])][0].id
        raise DataError(f"judgements: row {row!r} has a score that is not finite")
    return scores[:, 0], scores[:, 1], num_expected


def _lengths(answers: Mapping[str, AnswerFacts], keys: Sequence[str]) -> Floats:
    return np.array([answers[key].characters or 0 for key in keys], dtype=np.float64)


def _range(base_B: Floats, candidate_B: Floats) -> tuple[float, float]:
    both = np.concatenate([base_B, candidate_B])
    return float(both.min()), float(both.max())
