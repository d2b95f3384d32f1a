"""report.json: all that a run's verdict rests on, from the rows of its earlier stages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ray_jobs.errors import StageFailed
from ray_jobs.verdict import sections
from ray_jobs.verdict.decide import Evidence, MetricEvidence, Trust, decide
from ray_jobs.verdict.examples import side_by_side
from ray_jobs.verdict.guards import check_guards
from ray_jobs.verdict.inputs import (
    BASE,
    CANDIDATE,
    MODELS,
    Rivals,
    VerdictInputs,
    cluster_labels,
    common_backend,
    metrics_of,
)
from ray_jobs.verdict.length import length_adjusted
from ray_jobs.verdict.looks import nominal_alphas
from ray_jobs.verdict.planning import detectable_gain, prompts_for_wished_gain
from ray_jobs.verdict.scored import ScoredRows, scored_rows
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.shares import PairedShares
from ray_jobs.verdict.statistics import Paired, compare, enough_resamples, holm, sign_flip_p, worst_cases

__all__ = ["VerdictInputs", "make_report"]

REPORT_LEVEL = 0.95


@dataclass(frozen=True)
class _Metric:
    """One metric's rows and what they show, for the report (95 %) and for the decision (its own level)."""

    rows: ScoredRows
    paired: Paired
    evidence: MetricEvidence
    section: dict[str, Any]


def make_report(inputs: VerdictInputs, settings: VerdictSettings, seed: int) -> dict[str, Any]:
    """The report as plain JSON values: no NaN, no infinity; what is unknown is null, `notes` says why.

    The same inputs give the same report but for `timings_s`. Raises DataError for rows that do not belong
    together, StageFailed where there is nothing to compare.
    """
    _refuse_without_candidate(inputs.trials)
    alpha = decision_alpha(inputs, settings)
    names = metrics_of(inputs, settings.metrics)
    rivals = inputs.rivals or Rivals((), ())
    num_tests = inputs.num_candidates * len(names)
    metrics = _with_holm(
        [_metric(scored_rows(inputs, name), settings, alpha, seed, num_tests) for name in names],
        rivals.metrics,
    )
    lead = metrics[0]
    program = sections.program_shares(inputs, settings.level, settings, seed)
    trust = {name: trust_of(trust_in(inputs.trust, name)) for name in names}
    guards = check_guards(settings.guards, program, *(inputs.answers[model].measures for model in MODELS))
    evidence = Evidence(
        [row.evidence for row in metrics],
        alpha,
        trust[names[0]],
        program,
        guards,
        trust,
        _corrected(program, rivals.program_checks),
    )
    decision = decide(evidence, settings)
    report = {
        "run": inputs.run,
        "models": _models(inputs, lead.rows),
        "num_prompts": lead.rows.num_prompts,
        "num_scored_both": lead.paired.num_rows,
        "failures": lead.rows.failures,
        **lead.section,
        "judge_trust": _trust_section(inputs.trust, names[0]),
        "decision": decision.decision,
        "reason": decision.reason,
        "clause": decision.clause,
        "rule": _rule(settings, alpha, inputs),
        "guards": [asdict(guard) for guard in guards],
        "metrics": {row.rows.metric: row.section | {"failures": row.rows.failures} for row in metrics},
        "by_source": sections.by_source(lead.rows, settings, seed),
        "program_checks": sections.program_checks(inputs, settings, seed),
        "missing": _missing(lead),
        "engine_backend": common_backend(inputs),
        "answers": sections.answer_measures(inputs, settings),
        "data": dict(inputs.data_report),
        "tune": sections.tune(inputs),
        "examples": side_by_side(inputs, lead.rows, settings.num_examples),
        "notes": _notes(lead),
        "timings_s": sections.timings(inputs),
    }
    plain: dict[str, Any] = finite(report)
    return plain


def decision_alpha(inputs: VerdictInputs, settings: VerdictSettings) -> float:
    """The two-sided level of this decision: that of its look.

    Raises ValueError for a look that the settings do not have.
    """
    looks = settings.sequential.looks
    look = len(looks) - 1 if inputs.look is None else inputs.look
    if not 0 <= look < len(looks):
        raise ValueError(f"look {look}: the settings have {len(looks)}")
    alpha = 1 - settings.level
    if len(looks) > 1:
        alpha = nominal_alphas(looks, alpha, settings.sequential.spending)[look]
    # 1 - 0.95 is not 0.05 in binary: rounding keeps a report's figures readable and equal everywhere.
    return round(alpha, 12)


def finite(value: Any) -> Any:
    """The same plain values with NaN and infinities as null, numpy scalars and tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def p_values(inputs: VerdictInputs, settings: VerdictSettings, seed: int) -> Rivals:
    """The uncorrected p-values of one candidate, for the correction of the others'."""
    resamples = enough_resamples(settings.num_resamples, decision_alpha(inputs, settings))
    found = []
    for name in metrics_of(inputs, settings.metrics):
        rows = scored_rows(inputs, name)
        found.append(_p_gain(rows, settings, resamples, seed))
    program = sections.program_shares(inputs, settings.level, settings, seed)
    return Rivals(tuple(found), () if program is None else (program.p_wanted,))


def _p_gain(rows: ScoredRows, settings: VerdictSettings, resamples: int, seed: int) -> float:
    """P-value of "the true difference is the minimal gain"."""
    clusters_B = cluster_labels(rows.prompts, settings.cluster_by, rows.prompts_B)
    excess_B = rows.differences - settings.min_gain
    return sign_flip_p(excess_B, num_resamples=resamples, seed=seed, clusters_B=clusters_B)[0]


def _metric(rows: ScoredRows, settings: VerdictSettings, alpha: float, seed: int, num_tests: int) -> _Metric:
    """`num_tests`: metrics times candidates; the least of Holm's p-values must be below alpha over it."""
    clusters_B = cluster_labels(rows.prompts, settings.cluster_by, rows.prompts_B)
    lengths_B = rows.length_differences
    level_of_least = 1 - alpha / num_tests

    def at(level: float) -> tuple[Paired, Any]:
        paired = compare(
            rows.differences,
            level=level,
            num_resamples=enough_resamples(settings.num_resamples, 1 - level),
            seed=seed,
            clusters_B=clusters_B,
        )
        return paired, length_adjusted(rows.differences, lengths_B, level=level, clusters_B=clusters_B)

    paired, adjusted = at(REPORT_LEVEL)
    same_level = math.isclose(1 - alpha, REPORT_LEVEL)
    decided, decided_adjusted = (paired, adjusted) if same_level else at(1 - alpha)
    p_gain = _p_gain(rows, settings, enough_resamples(settings.num_resamples, alpha), seed)
    evidence = MetricEvidence(
        metric=rows.metric,
        paired=decided,
        p_gain=p_gain,
        p_holm=p_gain,
        adjusted=decided_adjusted,
        mean_length_difference=float(np.mean(lengths_B)),
        min_detectable_difference=detectable_gain(settings, paired, level_of_least),
        failure_shares=dict(rows.failure_shares),
    )
    wished = prompts_for_wished_gain(settings, paired, level_of_least)
    slopes = sections.slopes(rows, clusters_B)
    return _Metric(rows, paired, evidence, sections.metric(rows, paired, adjusted, evidence, wished, slopes))


def _with_holm(metrics: list[_Metric], rivals: Sequence[float]) -> list[_Metric]:
    """The metrics with their p-values corrected for their number, and for the other candidates'."""
    corrected = holm(np.array([*(row.evidence.p_holm for row in metrics), *rivals]))[: len(metrics)]
    return [
        replace(
            row,
            evidence=replace(row.evidence, p_holm=float(p_value)),
            section=row.section | {"p_value_holm": float(p_value)},
        )
        for row, p_value in zip(metrics, corrected, strict=True)
    ]


def _corrected(program: PairedShares | None, rivals: Sequence[float]) -> float | None:
    return None if program is None else float(holm(np.array([program.p_wanted, *rivals]))[0])


def _refuse_without_candidate(trials: Sequence[Mapping[str, Any]]) -> None:
    if trials and all(trial.get("status") == "failed" for trial in trials):
        causes = ", ".join(sorted({str(trial.get("error") or "no cause given") for trial in trials}))
        raise StageFailed(f"all {len(trials)} trials failed, so there is no candidate to judge: {causes}")


def _models(inputs: VerdictInputs, rows: ScoredRows) -> dict[str, Any]:
    means = {BASE: rows.base_scores.mean(), CANDIDATE: rows.candidate_scores.mean()}
    return {
        model: {"sha256": inputs.models.get(model, {}).get("sha256"), "mean_score": float(means[model])}
        for model in MODELS
    }


def trust_of(trust: Mapping[str, Any] | None) -> Trust:
    """How far the judge is to be trusted, from what was written down of it."""
    if not trust:
        return Trust(False, 0, None, None)
    ends = trust.get("ci95")
    return Trust(
        trusted=bool(trust.get("trusted")),
        pairs=int(trust.get("pairs") or 0),
        agreement=trust.get("agreement"),
        ci95=(float(ends[0]), float(ends[1])) if ends else None,
        self_referenced=int(trust.get("self_referenced") or 0),
        level=float(trust.get("level") or REPORT_LEVEL),
    )


def trust_in(trust: Mapping[str, Any] | None, metric: str) -> Mapping[str, Any]:
    """How far the judge is to be trusted by one metric: nothing is known where only others were tried."""
    found: Mapping[str, Any] = (trust or {}).get("by_metric", {metric: trust or {}}).get(metric, {})
    return found


def _trust_section(trust: Mapping[str, Any] | None, lead: str) -> dict[str, Any]:
    unknown = {"pairs": 0, "agreement": None, "ci95": None, "trusted": False}
    by_metric = (trust or {}).get("by_metric", {})
    others = {"by_metric": dict(by_metric)} if len(by_metric) > 1 else {}
    known = {key: value for key, value in trust_in(trust, lead).items() if key != "by_metric"}
    return unknown | known | others


def _rule(settings: VerdictSettings, alpha: float, inputs: VerdictInputs) -> dict[str, Any]:
    return {
        **settings.model_dump(mode="json", exclude={"num_examples"}),
        "alpha": alpha,
        "look": len(settings.sequential.looks) - 1 if inputs.look is None else inputs.look,
        "num_candidates": inputs.num_candidates,
    }


def _missing(lead: _Metric) -> dict[str, Any]:
    """Rows without a score for both, and where the mean could be if they all had gone one way."""
    rows, paired = lead.rows, lead.paired
    num_missing = rows.num_prompts - paired.num_rows
    width = rows.score_range[1] - rows.score_range[0]
    worst, best = worst_cases(paired.mean_difference, paired.num_rows, num_missing, width)
    return {
        "rows": num_missing,
        "share": num_missing / rows.num_prompts,
        "score_range": list(rows.score_range),
        "mean_difference_if_all_went_to_base": worst,
        "mean_difference_if_all_went_to_candidate": best,
    }


def _notes(lead: _Metric) -> dict[str, str]:
    """Why a figure of the report is null or of no spread."""
    found = {
        "ci95": lead.paired.interval.note,
        "length_adjusted": lead.evidence.adjusted.interval.note,
        "min_detectable_difference": None
        if lead.evidence.min_detectable_difference is not None
        else "the differences have no spread that can be told",
    }
    return {name: note for name, note in found.items() if note}
