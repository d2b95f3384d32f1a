"""The clauses of the decision rule, one by one, on evidence with round numbers."""

import dataclasses

import pytest

from ray_jobs.verdict.decide import Evidence, MetricEvidence, Trust, decide
from ray_jobs.verdict.guards import GuardResult, check_guards
from ray_jobs.verdict.length import Estimate
from ray_jobs.verdict.measures import AnswerMeasures, AnswerTotals
from ray_jobs.verdict.settings import Guards, VerdictSettings
from ray_jobs.verdict.shares import PairedShares
from ray_jobs.verdict.statistics import Interval, Paired

TRUSTED = Trust(True, 60, 0.9, (0.8, 0.95))
UNTRUSTED = Trust(False, 60, 0.5, (0.38, 0.62))


def metric(low, high, p=0.001, name="correctness", length=-10.0, adjusted=(0.1, 0.3), failures=0.0):
    mean = (low + high) / 2
    paired = Paired(100, None, mean, 1.0, 0.1, Interval(low, high, 0.95, "bca"), p, False, 60, 10, 30)
    value = sum(adjusted) / 2
    return MetricEvidence(
        metric=name,
        paired=paired,
        p_gain=p,
        p_holm=p,
        adjusted=Estimate(value, Interval(*adjusted, 0.95, "regression")),
        mean_length_difference=length,
        min_detectable_difference=0.28,
        failure_shares={"base": 0.0, "candidate": failures},
    )


def shares(low, high, p=0.001):
    base, difference = 0.1, (low + high) / 2
    return PairedShares(80, base, base + difference, difference, Interval(low, high, 0.95, "newcombe"), p, p)


def evidence(*metrics, trust=TRUSTED, program=None, guards=()):
    return Evidence(metrics or [metric(0.1, 0.3)], 0.05, trust, program, guards)


def outcome(given, **settings):
    decision = decide(given, VerdictSettings(**settings))
    return decision.decision, decision.clause


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        (metric(0.1, 0.3), {}, ("promote", "gain")),
        (metric(-0.1, 0.3, p=0.3), {}, ("inconclusive", "evidence")),
        (metric(-0.3, -0.1), {}, ("keep_base", "worse")),
        (metric(0.01, 0.3, p=0.06), {}, ("inconclusive", "evidence")),
        (metric(0.1, 0.3), {"min_gain": 0.2}, ("inconclusive", "evidence")),
        (metric(0.1, 0.3), {"min_gain": 0.4}, ("keep_base", "min_gain")),
        (metric(0.1, 0.3, failures=0.03), {}, ("inconclusive", "failures")),
        (metric(0.1, 0.3, failures=0.02), {}, ("promote", "gain")),
        (metric(0.1, 0.3, length=50.0), {}, ("promote", "gain")),
        (metric(0.1, 0.3, length=50.0, adjusted=(-0.1, 0.2)), {}, ("inconclusive", "length")),
        (metric(0.1, 0.3, length=-50.0, adjusted=(-0.1, 0.2)), {}, ("promote", "gain")),
        (metric(0.1, 0.3, length=50.0, adjusted=(-0.1, 0.2)), {"adjust_length": False}, ("promote", "gain")),
    ],
)
def test_one_metric(row, settings, expected):
    assert outcome(evidence(row), **settings) == expected


def test_an_interval_below_the_wanted_gain_needs_a_p_value_and_a_spread():
    """Two rows that fell, or ties alone, say nothing of the rare answer that gains much."""
    below = metric(0.0, 0.01)
    constant = dataclasses.replace(below.paired.interval, method="constant")
    ties = dataclasses.replace(below, paired=dataclasses.replace(below.paired, interval=constant))
    assert outcome(evidence(below), min_gain=0.1) == ("keep_base", "min_gain")
    assert outcome(evidence(dataclasses.replace(below, p_gain=0.06)), min_gain=0.1) == (
        "inconclusive",
        "evidence",
    )
    assert outcome(evidence(ties), min_gain=0.1) == ("inconclusive", "evidence")


def test_of_several_metrics_one_must_gain_and_none_may_fall():
    gain, flat, fall = (
        metric(0.1, 0.3),
        metric(-0.1, 0.2, p=0.5, name="style"),
        metric(-0.3, -0.1, name="tone"),
    )
    assert outcome(evidence(flat, gain)) == ("promote", "gain")
    assert outcome(evidence(gain, fall)) == ("keep_base", "worse")
    assert "tone" in decide(evidence(gain, fall), VerdictSettings()).reason


@pytest.mark.parametrize("p_value", [0.0001, 0.9])
@pytest.mark.parametrize("interval", [(5.0, 6.0), (-0.1, 0.1), (-6.0, -5.0)])
def test_an_untrusted_judge_promotes_nobody(interval, p_value):
    given = evidence(metric(*interval, p=p_value), trust=UNTRUSTED)
    assert outcome(given) == ("inconclusive", "trust")
    assert decide(given, VerdictSettings()).reason.startswith("judge not trusted (agrees with 50 %")


def test_without_asking_for_trust_the_judge_counts():
    assert outcome(evidence(trust=UNTRUSTED), require_trust=False) == ("promote", "gain")


@pytest.mark.parametrize(
    ("program", "min_gain", "expected"),
    [
        (shares(0.5, 0.7), None, "promote"),
        (shares(0.5, 0.7, p=0.2), None, "inconclusive"),
        (shares(-0.01, 0.2), None, "inconclusive"),
        (shares(-0.3, -0.1), None, "keep_base"),
        (shares(0.05, 0.2), 0.1, "inconclusive"),
        (shares(0.01, 0.04), 0.1, "keep_base"),
    ],
)
def test_program_checks_decide_where_the_judge_cannot(program, min_gain, expected):
    settings = VerdictSettings(
        when_untrusted="program_checks", guards=Guards(program_accuracy_min_gain=min_gain)
    )
    decision = decide(evidence(trust=UNTRUSTED, program=program), settings)
    assert (decision.decision, decision.clause) == (expected, "program_checks")
    assert "judge not trusted" in decision.reason
    assert "program-checked accuracy decides" in decision.reason


def test_clusters_without_spread_do_not_keep_the_base():
    program = shares(0.0, 0.0)
    program = dataclasses.replace(program, interval=dataclasses.replace(program.interval, method="constant"))
    settings = VerdictSettings(when_untrusted="program_checks", guards=Guards(program_accuracy_min_gain=0.1))
    assert decide(evidence(trust=UNTRUSTED, program=program), settings).decision == "inconclusive"


def test_untrusted_without_checks_is_inconclusive():
    given = evidence(trust=Trust(False, 0, None, None))
    decision = decide(given, VerdictSettings(when_untrusted="program_checks"))
    assert decision.decision == "inconclusive"
    assert "never tried on known pairs" in decision.reason
    assert "no prompt has a check" in decision.reason


def test_a_broken_guard_keeps_the_base_and_is_named():
    broken = GuardResult("program_accuracy_max_drop", 0.02, 0.1, False)
    given = evidence(guards=[GuardResult("length_ratio_max", 2.0, 1.1, True), broken])
    decision = decide(given, VerdictSettings())
    assert (decision.decision, decision.clause) == ("keep_base", "guard")
    assert decision.reason == (
        "guard program_accuracy_max_drop: the drop of program-checked accuracy is 0.1, the limit is 0.02"
    )


def test_reason_names_figures_and_trust():
    assert decide(evidence(), VerdictSettings()).reason == (
        "the candidate is better: correctness +0.2 (95 % interval +0.1 to +0.3, p = 0.001) on 100 prompts, "
        "above the wanted gain of 0; judge trusted (agrees with 90 % of 60 known pairs, "
        "95 % interval 80 % to 95 %)"
    )


def test_one_metric_without_an_interval_is_no_evidence():
    row = metric(0.1, 0.3)
    none = dataclasses.replace(
        row.paired, interval=Interval(None, None, 0.95, "none", "one row has no spread")
    )
    decision = decide(evidence(dataclasses.replace(row, paired=none)), VerdictSettings())
    assert decision.decision == "inconclusive"
    assert "one row has no spread" in decision.reason


def measures(characters=100.0, refusals=0.0, courting=0.0, speed=10.0, number=10):
    return AnswerMeasures(number, characters, refusals, courting, speed)


@pytest.mark.parametrize(
    ("guards", "program", "candidate", "name", "value", "held"),
    [
        ({}, shares(-0.1, 0.06), measures(), "program_accuracy_max_drop", 0.02, True),
        ({}, shares(-0.1, 0.04), measures(), "program_accuracy_max_drop", 0.03, False),
        ({}, None, measures(), "program_accuracy_max_drop", None, None),
        ({"program_accuracy_min_gain": 0.1}, None, measures(), "program_accuracy_min_gain", None, False),
        (
            {"program_accuracy_min_gain": 0.1},
            shares(0.1, 0.3),
            measures(),
            "program_accuracy_min_gain",
            0.2,
            True,
        ),
        ({}, None, measures(refusals=0.06), "refusal_rate_max_rise", 0.06, False),
        ({}, None, measures(courting=0.06), "courting_rate_max_rise", 0.06, False),
        ({}, None, measures(courting=0.04), "courting_rate_max_rise", 0.04, True),
        ({"length_ratio_max": 2.0}, None, measures(characters=201), "length_ratio_max", 2.01, False),
        (
            {"tokens_per_second_min_ratio": 0.9},
            None,
            measures(speed=8),
            "tokens_per_second_min_ratio",
            0.8,
            False,
        ),
        (
            {"tokens_per_second_min_ratio": 0.9},
            None,
            measures(speed=9),
            "tokens_per_second_min_ratio",
            0.9,
            True,
        ),
    ],
)
def test_guards(guards, program, candidate, name, value, held):
    results = check_guards(Guards(**guards), program, measures(), candidate)
    found = {row.name: row for row in results}[name]
    assert found.value == (None if value is None else pytest.approx(value))
    assert found.held is held


def test_guards_can_be_switched_off():
    guards = Guards(program_accuracy_max_drop=None, refusal_rate_max_rise=None, courting_rate_max_rise=None)
    assert check_guards(guards, None, measures(), measures(refusals=1.0)) == []


def test_measures_of_no_answers_are_null():
    assert AnswerTotals().means() == AnswerMeasures(0, None, None, None, None)


def test_a_metric_that_the_judge_is_not_trusted_by_decides_nothing():
    better, worse = metric(0.1, 0.3, name="style"), metric(-0.3, -0.1, name="tone")
    flat = metric(-0.1, 0.2, p=0.5)
    trust = {"correctness": TRUSTED, "style": UNTRUSTED, "tone": UNTRUSTED}

    def given(*metrics):
        return dataclasses.replace(evidence(*metrics), trust_by_metric=trust)

    assert outcome(given(flat, better)) == ("inconclusive", "evidence")
    assert outcome(given(metric(0.1, 0.3), worse)) == ("promote", "gain")
    assert outcome(given(better, worse)) == ("inconclusive", "trust")
    assert outcome(given(better, worse), require_trust=False) == ("keep_base", "worse")


def test_a_fall_is_not_hidden_by_the_correction_for_several_metrics():
    fall = dataclasses.replace(metric(-0.3, -0.01, p=0.04, name="tone"), p_holm=0.12)
    assert outcome(evidence(metric(0.1, 0.3), fall)) == ("keep_base", "worse")


def test_pairs_that_are_their_own_reference_are_named():
    own = dataclasses.replace(TRUSTED, self_referenced=12)
    assert "12 of them with the right answer as reference" in own.clause()
    assert "reference" not in TRUSTED.clause()


def test_the_level_of_trust_is_named():
    assert "99.9 % interval 80 % to 95 %" in dataclasses.replace(TRUSTED, level=0.999).clause()
