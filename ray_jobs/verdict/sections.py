"""The parts of report.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ray_jobs.verdict.decide import MetricEvidence
from ray_jobs.verdict.facts import RIGHT, UNCHECKED
from ray_jobs.verdict.ids import Rows
from ray_jobs.verdict.inputs import BASE, CANDIDATE, MODELS, VerdictInputs, cluster_labels
from ray_jobs.verdict.length import Estimate, slope
from ray_jobs.verdict.scored import ScoredRows
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.shares import PairedShares, compare_shares
from ray_jobs.verdict.statistics import Interval, Labels, Paired, enough_resamples, mean_interval

LEVEL = 0.95
_TRIAL_FIELDS = (
    "trial_id",
    "status",
    "error",
    "config",
    "steps",
    "heldout_accuracy",
    "heldout_nll",
    "heldout_loss",
    "heldout_margin",
)
_CURVE_FIELDS = ("step", "heldout_accuracy", "heldout_nll", "heldout_loss", "heldout_margin", "train_loss")


def metric(
    rows: ScoredRows,
    paired: Paired,
    adjusted: Estimate,
    evidence: MetricEvidence,
    num_prompts_for_wished_gain: int | None,
    slopes: Mapping[str, Any],
) -> dict[str, Any]:
    """One metric's figures; those of the leading metric also stand at the top of the report."""
    decided = evidence.paired.interval
    return {
        "metric": rows.metric,
        "mean_difference": paired.mean_difference,
        "ci95": ends(paired.interval),
        "p_value": paired.p_value,
        "wins": paired.wins,
        "ties": paired.ties,
        "losses": paired.losses,
        "length_adjusted": {
            "difference": adjusted.value,
            "ci95": ends(adjusted.interval),
            "mean_length_difference_characters": evidence.mean_length_difference,
        },
        "min_detectable_difference": evidence.min_detectable_difference,
        "num_prompts_for_wished_gain": num_prompts_for_wished_gain,
        "sd_of_differences": paired.sd,
        "interval": {"level": decided.level, "ends": ends(decided), "method": decided.method},
        "p_value_exact": paired.exact,
        "num_clusters": paired.num_clusters,
        "num_by_expected_score": rows.num_expected,
        "score_length_slope": dict(slopes),
    }


def ends(interval: Interval) -> list[float] | None:
    return None if interval.ends is None else list(interval.ends)


def slopes(rows: ScoredRows, clusters_B: Labels | None) -> dict[str, Any]:
    """Score units per 100 characters: over each model's answers, and between answers to one prompt."""
    estimates = {
        BASE: slope(rows.base_scores, rows.base_lengths, level=LEVEL, clusters_B=clusters_B),
        CANDIDATE: slope(rows.candidate_scores, rows.candidate_lengths, level=LEVEL, clusters_B=clusters_B),
        "same_prompt": slope(rows.differences, rows.length_differences, level=LEVEL, clusters_B=clusters_B),
    }
    return {
        name: {
            "per_100_characters": found.value,
            "ci95": ends(found.interval),
            "note": found.interval.note,
        }
        for name, found in estimates.items()
    }


def by_source(rows: ScoredRows, settings: VerdictSettings, seed: int) -> dict[str, Any]:
    """Judge scores per source of the prompts; a source that is one cluster has no interval."""
    groups = rows.prompts.sources.take(rows.prompts_B).groups()
    return {source: _source_row(rows, chosen, settings, seed) for source, chosen in groups.items()}


def _source_row(rows: ScoredRows, chosen: Rows, settings: VerdictSettings, seed: int) -> dict[str, Any]:
    differences = rows.differences[chosen]
    interval = mean_interval(
        differences,
        level=LEVEL,
        num_resamples=settings.num_resamples,
        seed=seed,
        clusters_B=cluster_labels(rows.prompts, settings.cluster_by, rows.prompts_B[chosen]),
    )
    return {
        "n": len(chosen),
        "base": float(rows.base_scores[chosen].mean()),
        "candidate": float(rows.candidate_scores[chosen].mean()),
        "difference": float(np.sort(differences).mean()),
        "ci95": ends(interval),
    }


def program_shares(
    inputs: VerdictInputs, level: float, settings: VerdictSettings, seed: int
) -> PairedShares | None:
    """Program-checked accuracy of both models on the prompts that have a check; null where none has."""
    prompts_B = checked_prompts(inputs)
    return _shares(inputs, prompts_B, level, settings, seed) if prompts_B.size else None


def checked_prompts(inputs: VerdictInputs) -> Rows:
    """Places of the prompts for which a program tells right from wrong, of both models' answers."""
    if any(model not in inputs.checks for model in MODELS):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.logical_and(*(inputs.checks[model] != UNCHECKED for model in MODELS)))


def _shares(
    inputs: VerdictInputs, prompts_B: Rows, level: float, settings: VerdictSettings, seed: int
) -> PairedShares:
    base_B, candidate_B = (inputs.checks[model][prompts_B] == RIGHT for model in MODELS)
    return compare_shares(
        base_B,
        candidate_B,
        level=level,
        wanted=settings.guards.wanted_accuracy_gain,
        clusters_B=cluster_labels(inputs.prompts, settings.cluster_by, prompts_B),
        num_resamples=enough_resamples(settings.num_resamples, 1 - level),
        seed=seed,
    )


def program_checks(inputs: VerdictInputs, settings: VerdictSettings, seed: int) -> dict[str, Any]:
    """Program-checked accuracy, in all and per family (the prompt's source)."""
    prompts_B = checked_prompts(inputs)
    if not prompts_B.size:
        return {"overall": None, "families": {}}
    groups = inputs.prompts.sources.take(prompts_B).groups()
    families = {
        source: shares_row(_shares(inputs, prompts_B[chosen], LEVEL, settings, seed))
        for source, chosen in groups.items()
    }
    return {"overall": shares_row(_shares(inputs, prompts_B, LEVEL, settings, seed)), "families": families}


def shares_row(shares: PairedShares) -> dict[str, Any]:
    return {
        "n": shares.num_rows,
        "base": shares.base,
        "candidate": shares.candidate,
        "difference": shares.difference,
        "ci95": ends(shares.interval),
        "p_value": shares.p_value,
    }


def answer_measures(inputs: VerdictInputs, settings: VerdictSettings) -> dict[str, Any]:
    """Length, refusals and courting per model; speed, which no two runs share, only for its guard."""
    found = {model: asdict(inputs.answers[model].measures) for model in MODELS}
    if settings.guards.tokens_per_second_min_ratio is None:
        for row in found.values():
            del row["tokens_per_second"]
    return found


def tune(inputs: VerdictInputs) -> dict[str, Any]:
    """The trials without their times, which stand in `timings_s`, and which of them is the candidate."""
    trials = sorted(inputs.trials, key=lambda trial: str(trial.get("trial_id")))
    return {
        "objective": f"heldout_{inputs.objective}",
        "trials": [_trial(trial) for trial in trials],
        "best": inputs.best_trial or inputs.models.get(CANDIDATE, {}).get("trial_id") or _best(trials),
    }


def _trial(trial: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: trial[name] for name in _TRIAL_FIELDS if name in trial}
    curve = [{key: row[key] for key in _CURVE_FIELDS if key in row} for row in trial.get("curve") or ()]
    return kept | {"curve": curve}


def _best(trials: Sequence[Mapping[str, Any]]) -> str | None:
    """The trial with the best held-out accuracy; ties go to the lower loss per token."""
    done = [
        (-trial["heldout_accuracy"], trial.get("heldout_nll") or 0.0, str(trial["trial_id"]))
        for trial in trials
        if trial.get("status") != "failed" and trial.get("heldout_accuracy") is not None
    ]
    return min(done)[2] if done else None


def timings(inputs: VerdictInputs) -> dict[str, Any]:
    """Seconds per stage, and per trial where trials were run."""
    trials = {str(trial.get("trial_id")): trial.get("seconds") for trial in inputs.trials}
    return dict(inputs.timings_s) | ({"trials": trials} if trials else {})
