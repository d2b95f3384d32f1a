"""One metric's rows that both models have a score for, checked and lined up."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_jobs.errors import DataError, StageFailed
from ray_jobs.verdict.coded import NONE
from ray_jobs.verdict.facts import NO_ANSWER, AnswerRows, PromptFacts, ScoreBuilder, Scores
from ray_jobs.verdict.ids import NO_ROW, Ids, Rows
from ray_jobs.verdict.inputs import BASE, CANDIDATE, MODELS, Look, VerdictInputs
from ray_jobs.verdict.shares import Flags
from ray_jobs.verdict.statistics import Floats


@dataclass(frozen=True)
class ScoredRows:
    """One metric's rows that both models have a score for, by rising prompt ID.

    Arrays have one value a row, B of them; lengths are in characters.
    """

    metric: str
    prompts: PromptFacts
    """All of the run."""
    prompts_B: Rows
    """Which of them each row is of."""
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

    def id(self, row: int) -> str:
        return self.prompts.ids[int(self.prompts_B[row])]

    @property
    def differences(self) -> Floats:
        return self.candidate_scores - self.base_scores

    @property
    def length_differences(self) -> Floats:
        return self.candidate_lengths - self.base_lengths


def scored_rows(inputs: VerdictInputs, metric: str) -> ScoredRows:
    """The rows of this look that both models have a score for.

    Raises DataError for unknown or repeated IDs, StageFailed when there is nothing to compare.
    """
    look = inputs.of_look()
    rising_B = _rising(look.ids)
    answers_B = {model: _rows_of(look.ids, look.answers[model].ids, f"{model} answers") for model in MODELS}
    judged = {model: inputs.judgements[model].get(metric) or ScoreBuilder().build() for model in MODELS}
    scores_B = {
        model: _rows_of(look.ids, judged[model].ids, f"{model} judgements by {metric}") for model in MODELS
    }
    found = {
        model: _scored(look.answers[model], answers_B[model], judged[model], scores_B[model])
        for model in MODELS
    }
    counts = {model: failures for model, (_, failures) in found.items()}
    both_B = rising_B[(found[BASE][0] & found[CANDIDATE][0])[rising_B]]
    if not both_B.size:
        raise StageFailed(_nothing_to_compare(metric, counts, len(look.ids)))
    base_B, candidate_B, expected_B = _scores(judged, {model: scores_B[model][both_B] for model in MODELS})
    _refuse_infinite(look.ids, both_B, base_B, candidate_B)
    lengths = {model: look.answers[model].characters_B[answers_B[model][both_B]] for model in MODELS}
    return ScoredRows(
        metric=metric,
        prompts=inputs.prompts,
        prompts_B=look.prompts_B[both_B],
        base_scores=base_B,
        candidate_scores=candidate_B,
        base_lengths=lengths[BASE].astype(np.float64),
        candidate_lengths=lengths[CANDIDATE].astype(np.float64),
        num_expected=int(expected_B.sum()),
        num_prompts=len(look.ids),
        failures=counts,
        failure_shares={model: _failure_share(inputs, look, model, counts[model]) for model in MODELS},
        score_range=inputs.score_ranges.get(metric) or _range(base_B, candidate_B),
    )


def _rising(prompts: Ids) -> Rows:
    """The prompts in the order of their IDs."""
    if not len(prompts):
        raise DataError("evaluation prompts: none")
    rising_B = prompts.rising()
    if prompts.repeated(rising_B):
        raise DataError("evaluation prompts: an ID stands twice")
    return rising_B


def _rows_of(prompts: Ids, ids: Ids, what: str) -> Rows:
    """For each prompt its row among `ids`, or NO_ROW."""
    places_R = prompts.rows_of(ids)
    unknown = np.flatnonzero(places_R == NO_ROW)
    known_R = places_R[: unknown[0]] if unknown.size else places_R
    order_R = np.argsort(known_R, kind="stable")
    repeats = order_R[1:][np.diff(known_R[order_R]) == 0]
    if repeats.size:
        raise DataError(f"{what}: row {ids[int(repeats.min())]!r} stands twice")
    if unknown.size:
        raise DataError(f"{what}: row {ids[int(unknown[0])]!r} belongs to no evaluation prompt")
    rows_B = np.full(len(prompts), NO_ROW, dtype=np.int64)
    rows_B[places_R] = np.arange(places_R.size)
    return rows_B


def _scored(
    answers: AnswerRows, answers_B: Rows, scores: Scores, scores_B: Rows
) -> tuple[Flags, dict[str, int]]:
    """Which prompts one model has a score for, and how often each reason why it has none occurs."""
    answered_B, judged_B = answers_B != NO_ROW, scores_B != NO_ROW
    reasons = Counter({"no answer row": int((~answered_B).sum())})
    rows_A = answers_B[answered_B]
    reasons.update({f"answer: {text}": count for text, count in answers.errors.take(rows_A).counts().items()})
    answered_B[answered_B] = answers.characters_B[rows_A] != NO_ANSWER
    reasons["not judged"] += int((answered_B & ~judged_B).sum())
    scored_B = answered_B & judged_B
    failures = scores.failures.take(scores_B[scored_B])
    reasons.update(failures.counts())
    scored_B[scored_B] = failures.numbers_B == NONE
    often = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return scored_B, {reason: count for reason, count in often if count}


def _scores(judged: Mapping[str, Scores], rows: Mapping[str, Rows]) -> tuple[Floats, Floats, Flags]:
    """Base and candidate scores, and where they are expected ones: where both judgements have one."""
    expected_B = np.logical_and(*(judged[model].has_expected_B[rows[model]] for model in MODELS))
    base_B, candidate_B = (
        np.where(expected_B, judged[model].expected_B[rows[model]], judged[model].scores_B[rows[model]])
        for model in MODELS
    )
    return base_B, candidate_B, expected_B


def _refuse_infinite(ids: Ids, both_B: Rows, base_B: Floats, candidate_B: Floats) -> None:
    infinite = np.flatnonzero(~(np.isfinite(base_B) & np.isfinite(candidate_B)))
    if infinite.size:
        row_id = ids[int(both_B[infinite[0]])]
        raise DataError(f"judgements: row {row_id!r} has a score that is not finite")


def _failure_share(inputs: VerdictInputs, look: Look, model: str, failures: Mapping[str, int]) -> float:
    """Of all rows: those without an answer, and as many of the others as have no score at this look."""
    num_rows, num_looked = len(inputs.prompts), len(look.ids)
    missing = num_rows - inputs.answers[model].rows.num_answered
    answered = look.answers[model].num_answered
    unscored = sum(failures.values()) - (num_looked - answered)
    if answered == 0:
        return 1.0
    return (missing * answered + (num_rows - missing) * unscored) / (num_rows * answered)


def _nothing_to_compare(metric: str, counts: Mapping[str, Mapping[str, int]], num_prompts: int) -> str:
    parts = []
    for model in MODELS:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in counts[model].items())
        scored = num_prompts - sum(counts[model].values())
        parts.append(f"{model} {scored} of {num_prompts}" + (f" ({reasons})" if reasons else ""))
    return f"no prompt is scored for both models by {metric}, so there is no verdict: " + "; ".join(parts)


def _range(base_B: Floats, candidate_B: Floats) -> tuple[float, float]:
    return (
        float(min(base_B.min(), candidate_B.min())),
        float(max(base_B.max(), candidate_B.max())),
    )
