"""By which metric models are ranked, and whether its scores may tell them apart: as in the runs' verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.ranking.ranking import Entry
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.verdict import trust_in, trust_of
from ray_jobs.verdict.words import percent

Trusts = Mapping[str, Mapping[str, Any]]
"""Base -> how far the judge of its run is to be trusted, as `judgements/trust.json` has it."""


def leading_metric(judged: Sequence[str], settings: VerdictSettings, trusts: Trusts) -> str:
    """The first metric of the verdicts by which the judge of every run is trusted; else the first.

    `judged`: names of all metrics of the runs.
    """
    names = settings.metrics or judged
    if not settings.require_trust:
        return names[0]

    def is_trusted(name: str) -> bool:
        return all(trust_of(trust_in(trust, name)).trusted for trust in trusts.values())

    return next(filter(is_trusted, names), names[0])


def why_undecided(
    metric: str, entries: Sequence[Entry], settings: VerdictSettings, trusts: Trusts
) -> str | None:
    """Why scores by the metric tell nothing apart; None where they may."""
    lacking = max(entries, key=lambda entry: entry.unscored_share)
    if lacking.unscored_share > settings.max_failure_share:
        return (
            f"{percent(lacking.unscored_share)} of the answers of {lacking.name} have no score by {metric}, "
            f"the limit is {percent(settings.max_failure_share)}"
        )
    for base, trust in trusts.items():
        found = trust_of(trust_in(trust, metric))
        if settings.require_trust and not found.trusted:
            return f"{found.clause()} by {metric} in the run of {base}"
    return None
