"""Several candidates against one base: one report, of the best, corrected for having looked at all."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray_jobs.verdict.inputs import CANDIDATE, Rivals, VerdictInputs
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.verdict import make_report, p_values

_ORDER = {"promote": 2, "inconclusive": 1, "keep_base": 0}


def best_report(
    inputs: Mapping[str, VerdictInputs], settings: VerdictSettings, seed: int
) -> tuple[str, dict[str, Any]]:
    """The name and report of the candidate to promote, else of the one that came closest.

    `inputs`: candidate -> its rows beside the same base's. Every p-value is corrected by Holm's method over
    all candidates and metrics, so that the chance to promote any candidate that is no better stays that of
    one. Raises as make_report does.
    """
    if len(inputs) == 1:
        ((name, given),) = inputs.items()
        return name, make_report(given, settings, seed) | {"candidate": name}
    tests = {name: p_values(given, settings, seed) for name, given in inputs.items()}
    reports = {
        name: make_report(
            replace(given, rivals=_others(tests, name), num_candidates=len(inputs)), settings, seed
        )
        for name, given in inputs.items()
    }
    best = max(reports, key=lambda name: _standing(reports[name]))
    report = reports[best]
    reason = f"{report['reason']}; {best} of {len(inputs)} candidates, corrected for all of them (Holm)"
    rows = [_row(name, report, inputs[name]) for name, report in reports.items()]
    return best, report | {"reason": reason, "candidate": best, "candidates": rows}


def _others(tests: Mapping[str, Rivals], name: str) -> Rivals:
    rest = [found for other, found in tests.items() if other != name]
    return Rivals(
        tuple(p for found in rest for p in found.metrics),
        tuple(p for found in rest for p in found.program_checks),
    )


def _standing(report: Mapping[str, Any]) -> tuple[int, float]:
    """The better the decision, then the larger the gain that decided."""
    gain = report["mean_difference"]
    if report["clause"] == "program_checks":
        gain = report["program_checks"]["overall"]["difference"]
    return _ORDER[report["decision"]], gain


def _row(name: str, report: Mapping[str, Any], inputs: VerdictInputs) -> dict[str, Any]:
    checks = report["program_checks"]["overall"]
    return {
        "candidate": name,
        "trial": inputs.best_trial,
        "sha256": report["models"][CANDIDATE]["sha256"],
        "mean_score": report["models"][CANDIDATE]["mean_score"],
        "mean_difference": report["mean_difference"],
        "ci95": report["ci95"],
        "p_value": report["p_value"],
        "p_value_holm": report["metrics"][report["metric"]]["p_value_holm"],
        "program_accuracy": checks[CANDIDATE] if checks else None,
        "decision": report["decision"],
        "clause": report["clause"],
        "reason": report["reason"],
    }
