"""The decision rule: promote, keep the base, or not enough evidence, and the clause that decided.

Clauses in order; the first that speaks decides:
1. too many unscored answers: inconclusive.
2. a broken guard: keep the base.
3. a judge that is not trusted: program-checked accuracy decides where the settings say so; else inconclusive.
   Metrics for which the judge is not trusted are reported and decide nothing.
4. any metric that is significantly worse, without a correction that would hide it: keep the base.
5. no metric whose whole interval is above the minimal gain: keep the base where every interval lies below
   it, else inconclusive.
6. a gain of a longer candidate that is gone at equal length: inconclusive.
7. promote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ray_jobs.verdict.guards import GuardResult
from ray_jobs.verdict.length import Estimate
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.shares import PairedShares
from ray_jobs.verdict.statistics import Interval, Paired
from ray_jobs.verdict.words import percent

Outcome = Literal["promote", "keep_base", "inconclusive"]


@dataclass(frozen=True)
class MetricEvidence:
    """One metric: the paired difference at the decision's level, and the same at equal length."""

    metric: str
    paired: Paired
    p_gain: float
    """Of "the difference is the minimal gain"."""
    p_holm: float
    """The same, corrected for all metrics and candidates."""
    adjusted: Estimate
    mean_length_difference: float
    """Candidate minus base, in characters."""
    min_detectable_difference: float | None
    failure_shares: dict[str, float]


@dataclass(frozen=True)
class Trust:
    """The judge on pairs whose better answer is known; `pairs` is 0 where that was not measured."""

    trusted: bool
    pairs: int
    agreement: float | None
    ci95: tuple[float, float] | None
    """At `level`, 95 % by default."""
    self_referenced: int = 0
    """Pairs whose right answer was its own reference: the judge only had to see that texts are equal."""
    level: float = 0.95

    def clause(self) -> str:
        word = "judge trusted" if self.trusted else "judge not trusted"
        if self.pairs == 0 or self.agreement is None:
            return f"{word} (never tried on known pairs)"
        level = f"{100 * self.level:.4g} % interval"
        ends = f", {level} {percent(self.ci95[0], 0)} to {percent(self.ci95[1], 0)}" if self.ci95 else ""
        own = f", {self.self_referenced} of them with the right answer as reference" * bool(
            self.self_referenced
        )
        return f"{word} (agrees with {percent(self.agreement, 0)} of {self.pairs} known pairs{ends}{own})"


@dataclass(frozen=True)
class Evidence:
    """All that the rule looks at."""

    metrics: Sequence[MetricEvidence]
    alpha: float
    """Two-sided level of this look; the intervals here have level 1 - alpha."""
    trust: Trust
    """In the judge by the leading metric."""
    program: PairedShares | None
    """Program-checked accuracy on all answers, whatever the look, its interval at the level of the whole
    verdict; null where no prompt has a check."""
    guards: Sequence[GuardResult]
    trust_by_metric: Mapping[str, Trust] = field(default_factory=dict)
    """Where it was measured for each metric."""
    program_p: float | None = None
    """The program checks' `p_wanted`, corrected for all candidates; null: there is one candidate."""

    def trust_in(self, metric: str) -> Trust:
        return self.trust_by_metric.get(metric, self.trust)


@dataclass(frozen=True)
class Decision:
    decision: Outcome
    reason: str
    """One sentence that names the clause."""
    clause: str


def decide(evidence: Evidence, settings: VerdictSettings) -> Decision:
    """The first clause that speaks; see the module's list."""
    failed = _too_many_failures(evidence, settings) or _broken_guard(evidence)
    if failed:
        return failed
    counted = [
        row for row in evidence.metrics if not settings.require_trust or evidence.trust_in(row.metric).trusted
    ]
    if not counted:
        return _without_judge(evidence, settings)
    left = replace(evidence, metrics=counted)
    return _worse(left) or _no_gain(left, settings) or _gain(left, settings)


def _too_many_failures(evidence: Evidence, settings: VerdictSettings) -> Decision | None:
    for row in evidence.metrics:
        model, share = max(row.failure_shares.items(), key=lambda item: item[1])
        if share > settings.max_failure_share:
            return Decision(
                "inconclusive",
                f"no winner: {percent(share)} of the {model} model's answers have no score by {row.metric}, "
                f"the limit is {percent(settings.max_failure_share)}",
                "failures",
            )
    return None


def _broken_guard(evidence: Evidence) -> Decision | None:
    broken = [guard.broken() for guard in evidence.guards if guard.held is False]
    return Decision("keep_base", "; ".join(broken), "guard") if broken else None


def _without_judge(evidence: Evidence, settings: VerdictSettings) -> Decision:
    untrusted = evidence.trust.clause()
    if settings.when_untrusted == "inconclusive":
        return Decision("inconclusive", f"{untrusted}, and it cannot promote on its word", "trust")
    program = evidence.program
    if program is None:
        return Decision(
            "inconclusive", f"{untrusted}, and no prompt has a check that a program can make", "trust"
        )
    wanted = settings.guards.wanted_accuracy_gain
    p_value = program.p_wanted if evidence.program_p is None else evidence.program_p
    outcome, verb = _by_checks(program, wanted, p_value, 1 - program.interval.level)
    change = (
        f"{percent(program.base)} to {percent(program.candidate)} on {program.num_rows} prompts, a change of "
        f"{_points(program.difference)} ({_span(program.interval, 100)} points, p {_p(p_value)})"
    )
    reason = f"{untrusted}, so program-checked accuracy decides: {change} {verb} {100 * wanted:g} points"
    return Decision(outcome, reason, "program_checks")


def _by_checks(program: PairedShares, wanted: float, p_value: float, alpha: float) -> tuple[Outcome, str]:
    ends = program.interval.ends
    if ends and ends[0] > wanted and p_value <= alpha:
        return "promote", "is above the wanted gain of"
    if ends and ends[1] < wanted and program.interval.method != "constant":
        return "keep_base", "is below the wanted gain of"
    return "inconclusive", "cannot be told from the wanted gain of"


def _worse(evidence: Evidence) -> Decision | None:
    for row in evidence.metrics:
        ends = row.paired.interval.ends
        if ends and ends[1] < 0 and row.paired.p_value <= evidence.alpha:
            clause = _clause(row, row.paired.p_value)
            return Decision("keep_base", f"the candidate is worse: {clause}", "worse")
    return None


def _no_gain(evidence: Evidence, settings: VerdictSettings) -> Decision | None:
    if _winners(evidence, settings):
        return None
    if all(_below(row, settings.min_gain, evidence.alpha) for row in evidence.metrics):
        row = evidence.metrics[0]
        reason = f"the gain is below the wanted {settings.min_gain:g}: {_clause(row, row.p_gain)}"
        return Decision("keep_base", reason, "min_gain")
    row = evidence.metrics[0]
    needed = row.min_detectable_difference
    hint = f"; {row.paired.num_rows} prompts detect {needed:.2g} or more" if needed else ""
    if row.paired.interval.method == "constant":
        hint = "; all differences are equal, which says nothing of rarer ones"
    reason = f"not enough evidence of a gain above {settings.min_gain:g}: {_clause(row)}{hint}"
    return Decision("inconclusive", reason, "evidence")


def _below(row: MetricEvidence, min_gain: float, alpha: float) -> bool:
    """Whether the gain is below the minimal one. Differences that are all equal say nothing of rare ones."""
    interval = row.paired.interval
    if interval.ends is None or interval.method == "constant":
        return False
    return interval.ends[1] < min_gain and row.p_gain <= alpha


def _gain(evidence: Evidence, settings: VerdictSettings) -> Decision:
    winners = _winners(evidence, settings)
    held = [row for row in winners if not settings.adjust_length or _holds_at_equal_length(row, settings)]
    if not held:
        row = winners[0]
        reason = (
            f"the gain may be bought by length: {_clause(row)}, but its answers are "
            f"{row.mean_length_difference:.0f} characters longer and at equal length the difference is "
            f"{_adjusted(row.adjusted)}"
        )
        return Decision("inconclusive", reason, "length")
    row = held[0]
    trust = (
        evidence.trust_in(row.metric).clause()
        if settings.require_trust
        else "trust in the judge was not asked for"
    )
    reason = (
        f"the candidate is better: {_clause(row)}, above the wanted gain of {settings.min_gain:g}; {trust}"
    )
    return Decision("promote", reason, "gain")


def _winners(evidence: Evidence, settings: VerdictSettings) -> list[MetricEvidence]:
    return [
        row
        for row in evidence.metrics
        if (ends := row.paired.interval.ends) and ends[0] > settings.min_gain and row.p_holm <= evidence.alpha
    ]


def _holds_at_equal_length(row: MetricEvidence, settings: VerdictSettings) -> bool:
    """A candidate that is no longer than the base cannot have bought its gain by length."""
    if row.mean_length_difference <= 0:
        return True
    ends = row.adjusted.interval.ends
    return ends is not None and ends[0] > settings.min_gain


def _clause(row: MetricEvidence, p_value: float | None = None) -> str:
    paired = row.paired
    shown = row.p_holm if p_value is None else p_value
    return (
        f"{row.metric} {paired.mean_difference:+.3g} ({_span(paired.interval)}, p {_p(shown)}) "
        f"on {paired.num_rows} prompts"
    )


def _adjusted(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"unknown ({estimate.interval.note})"
    return f"{estimate.value:+.3g} ({_span(estimate.interval)})"


def _span(interval: Interval, scale: float = 1.0) -> str:
    if interval.low is None or interval.high is None:
        return f"no interval: {interval.note}"
    level = f"{100 * interval.level:.4g} % interval"
    return f"{level} {scale * interval.low:+.3g} to {scale * interval.high:+.3g}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def _p(p_value: float) -> str:
    return f"= {p_value:.2g}" if p_value >= 0.0001 else "below 0.0001"
