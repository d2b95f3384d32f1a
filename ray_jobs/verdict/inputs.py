"""What a verdict is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ray_jobs.errors import DataError
from ray_jobs.verdict.facts import AnswerFacts, AnswerRows, Checks, FetchTexts, PromptFacts, Scores
from ray_jobs.verdict.ids import NO_ROW, Ids, Rows
from ray_jobs.verdict.shares import Flags
from ray_jobs.verdict.statistics import Labels

BASE, CANDIDATE = "base", "candidate"
MODELS = (BASE, CANDIDATE)


@dataclass(frozen=True)
class VerdictInputs:
    """What all earlier stages found. Mappings by model have the keys `base` and `candidate`."""

    run: str
    prompts: PromptFacts
    answers: Mapping[str, AnswerFacts]
    judgements: Mapping[str, Mapping[str, Scores]]
    """Per model: metric -> scores."""
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
    checks: Mapping[str, Checks] = field(default_factory=dict)
    """Per model: one value a prompt; no model where no program can tell of any."""
    best_trial: str | None = None
    """Trial that the candidate is made from; null: the one with the best held-out accuracy."""
    objective: str = "accuracy"
    """What the search ranked trials by, on held-out pairs: accuracy, nll, loss or margin."""
    look: int | None = None
    """Which look of `sequential.looks` this is, from 0; null is the last, with all rows in."""
    judged: Flags | None = None
    """Whether this look judges the answers to each prompt; null: all. Guards see all answers."""
    num_candidates: int = 1
    """Candidates that are judged against this base."""
    rivals: "Rivals | None" = None
    """What the other candidates' tests say, for Holm's correction over all of them."""
    score_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric -> lowest and highest score of its rubric; else the ones that occur."""

    def of_look(self) -> "Look":
        """The rows of this look alone."""
        ids, answers = self.prompts.ids, {model: self.answers[model].rows for model in MODELS}
        if self.judged is None:
            return Look(np.arange(len(ids), dtype=np.int64), ids, answers)
        prompts_B = np.flatnonzero(self.judged)
        ids = ids.take(prompts_B)
        answers = {
            model: rows.take(np.flatnonzero(ids.rows_of(rows.ids) != NO_ROW))
            for model, rows in answers.items()
        }
        return Look(prompts_B, ids, answers)


@dataclass(frozen=True)
class Look:
    """What one look sees of the rows; mappings are by model."""

    prompts_B: Rows
    """Places of its prompts among all."""
    ids: Ids
    """Theirs."""
    answers: Mapping[str, AnswerRows]


@dataclass(frozen=True)
class Rivals:
    """Uncorrected p-values of the other candidates: of their metrics, and of their program checks."""

    metrics: tuple[float, ...]
    program_checks: tuple[float, ...]


def common_backend(inputs: VerdictInputs) -> str | None:
    """The engine's backend that wrote all answers; None where rows do not tell.

    Raises DataError where two did: their kernels round differently, so that models would not be all that
    differs.
    """
    found = sorted(frozenset().union(*(inputs.answers[model].backends for model in MODELS)))
    if len(found) > 1:
        raise DataError(f"answers: written by {' and '.join(found)}: one backend must write all of a run")
    return found[0] if found else None


def metrics_of(inputs: VerdictInputs, wanted: Sequence[str]) -> tuple[str, ...]:
    """The metrics of the decision, the leading one first.

    Raises DataError when a wanted metric was not judged, or none was.
    """
    judged = list(dict.fromkeys(metric for model in MODELS for metric in inputs.judgements[model]))
    if not judged:
        raise DataError("no judgements: neither model's answers were judged")
    for metric in wanted:
        if metric not in judged:
            raise DataError(f"verdict.metrics: {metric!r} was not judged; judged: {', '.join(judged)}")
    return tuple(wanted or judged)


def cluster_labels(
    prompts: PromptFacts, by: Literal["none", "source", "prompt"], prompts_B: Rows | None = None
) -> Labels | None:
    """Which cluster each row is of, as whole numbers that do not depend on the order of the rows.

    `prompts_B`: the prompt of each row; null: rows are all prompts.
    """
    if by == "none":
        return None
    keys = prompts.sources.numbers_B if by == "source" else prompts.openings_B
    labels_B: Labels = np.unique(keys if prompts_B is None else keys[prompts_B], return_inverse=True)[1]
    return labels_B
