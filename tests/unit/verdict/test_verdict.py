import dataclasses
import json
import math
import random

import numpy as np
import pytest
from verdict_rows import (
    METRIC,
    TRUSTED,
    UNTRUSTED,
    answer,
    answer_facts,
    given,
    inputs,
    judgement,
    prompt,
    scores,
)

from ray_jobs.errors import DataError, StageFailed
from ray_jobs.records import Message, Prompt
from ray_jobs.verdict.facts import PromptFacts
from ray_jobs.verdict.inputs import cluster_labels
from ray_jobs.verdict.planning import min_detectable_difference
from ray_jobs.verdict.settings import Sequential, VerdictSettings
from ray_jobs.verdict.statistics import enough_resamples
from ray_jobs.verdict.verdict import decision_alpha, finite, make_report

CONTRACT = {
    "run",
    "models",
    "num_prompts",
    "num_scored_both",
    "failures",
    "mean_difference",
    "ci95",
    "p_value",
    "wins",
    "ties",
    "losses",
    "length_adjusted",
    "min_detectable_difference",
    "judge_trust",
    "decision",
    "reason",
    "tune",
    "timings_s",
}
BASE, BETTER = [2, 3, 1, 2, 4, 3, 2, 1, 3, 2] * 4, [4, 4, 3, 2, 5, 4, 4, 2, 3, 4] * 4
FAST = VerdictSettings(num_resamples=500, max_failure_share=0.1)


def report(given, settings=FAST):
    made = make_report(given, settings, seed=7)
    json.dumps(made, allow_nan=False)
    return made


def test_the_contracts_fields():
    made = report(inputs(BASE, BETTER))
    assert made.keys() >= CONTRACT
    assert made["models"]["base"] == {"sha256": "base", "mean_score": pytest.approx(2.3)}
    assert made["mean_difference"] == pytest.approx(1.2)
    assert (made["wins"], made["ties"], made["losses"]) == (32, 8, 0)
    assert made["length_adjusted"].keys() >= {"difference", "ci95"}
    assert made["judge_trust"] == {"pairs": 60, "agreement": 0.9, "ci95": [0.8, 0.95], "trusted": True}
    assert (made["decision"], made["clause"]) == ("promote", "gain")


def test_swapping_the_models_swaps_the_figures():
    one, other = report(inputs(BASE, BETTER)), report(inputs(BETTER, BASE))
    assert other["mean_difference"] == -one["mean_difference"]
    assert other["ci95"] == [-one["ci95"][1], -one["ci95"][0]]
    assert (other["wins"], other["losses"]) == (one["losses"], one["wins"])
    assert other["decision"] == "keep_base"


def test_identical_runs_give_identical_reports_whatever_the_order_of_rows():
    prompts = [prompt(number) for number in range(len(BASE))]
    both = {"base": BASE, "candidate": BETTER}
    answers = {model: [answer(row, model) for row in prompts] for model in both}
    judged = {
        model: [judgement(row.id, score) for row, score in zip(prompts, both[model], strict=True)]
        for model in both
    }
    checks = {"base": {"p0001": True}, "candidate": {"p0001": False}}
    in_order = given(prompts, answers, judged, checks=checks)
    shuffled = given(
        random.Random(1).sample(prompts, len(prompts)),
        {model: rows[::-1] for model, rows in answers.items()},
        {model: rows[::-1] for model, rows in judged.items()},
        checks=checks,
    )
    assert list(in_order.prompts.ids) != list(shuffled.prompts.ids)
    assert json.dumps(report(in_order)) == json.dumps(report(shuffled))


def test_only_timings_differ_between_runs_of_other_speed():
    slow = inputs(
        BASE, BETTER, timings_s={"tune": 9.0}, trials=[{"trial_id": "t0", "seconds": 3.0, "status": "done"}]
    )
    fast = inputs(
        BASE, BETTER, timings_s={"tune": 1.0}, trials=[{"trial_id": "t0", "seconds": 1.0, "status": "done"}]
    )
    made = [report(given) for given in (slow, fast)]
    assert made[0].pop("timings_s") == {"tune": 9.0, "trials": {"t0": 3.0}}
    assert made[1].pop("timings_s") == {"tune": 1.0, "trials": {"t0": 1.0}}
    assert made[0] == made[1]


def test_expected_scores_are_compared_where_both_have_one():
    given = inputs([3, 3], [3, 4])
    rows = {
        "base": [judgement("p0000", 3, 2.6), judgement("p0001", 3, 2.9)],
        "candidate": [judgement("p0000", 3, 3.1), judgement("p0001", 4, None)],
    }
    made = report(dataclasses.replace(given, judgements=scores(rows)))
    assert made["mean_difference"] == pytest.approx((0.5 + 1.0) / 2)
    assert made["num_by_expected_score"] == 1


def test_failures_are_counted_per_model_and_reason():
    base, candidate = [2, None, 3, 4, 1, 2], [3, 3, None, None, 2, 3]
    given = inputs(base, candidate)
    rows = [prompt(number) for number in range(len(base))]
    failed = {"base": [answer(row, "base", None if row.id == "p0005" else "x") for row in rows]}
    answers = {**given.answers, **answer_facts(failed)}
    made = report(dataclasses.replace(given, answers=answers))
    assert made["failures"] == {"base": {"answer: timeout": 1, "no_score": 1}, "candidate": {"no_score": 2}}
    assert made["num_scored_both"] == 2
    assert made["missing"]["rows"] == 4
    assert (made["decision"], made["clause"]) == ("inconclusive", "failures")
    # two rows at +1, four missing, scores from 1 to 3: (2 - 4 * 2) / 6 and (2 + 4 * 2) / 6
    assert made["missing"]["mean_difference_if_all_went_to_base"] == pytest.approx(-1.0)
    assert made["missing"]["mean_difference_if_all_went_to_candidate"] == pytest.approx(10 / 6)


def test_no_row_scored_for_both_is_refused():
    with pytest.raises(StageFailed, match=r"base 1 of 2 \(1 x no_score\); candidate 1 of 2 \(1 x no_score\)"):
        make_report(inputs([3, None], [None, 3]), FAST, 0)


def test_one_model_all_failures_is_refused():
    with pytest.raises(StageFailed, match=r"candidate 0 of 3 \(3 x no_score\)"):
        make_report(inputs([3, 2, 3], [None, None, None]), FAST, 0)


def test_all_trials_failed_is_refused():
    trials = [{"trial_id": f"t{i}", "status": "failed", "error": "out of memory"} for i in range(3)]
    with pytest.raises(StageFailed, match=r"all 3 trials failed.*out of memory"):
        make_report(inputs(BASE, BETTER, trials=trials), FAST, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": PromptFacts.of([])}, "evaluation prompts: none"),
        ({"prompts": PromptFacts.of([prompt(0), prompt(0)])}, "evaluation prompts: an ID stands twice"),
        ({"judgements": scores({"base": [], "candidate": []})}, "no judgements"),
        (
            {"judgements": scores({"base": [judgement("x", 1)], "candidate": []})},
            "base judgements by correctness: row 'x' belongs to no evaluation prompt",
        ),
        (
            {"judgements": scores({"base": [judgement("p0000", 1)] * 2, "candidate": []})},
            "base judgements by correctness: row 'p0000' stands twice",
        ),
        (
            {
                "judgements": scores(
                    {model: [judgement("p0000", 1, math.nan)] for model in ("base", "candidate")}
                )
            },
            "'p0000' has a score that is not finite",
        ),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        make_report(dataclasses.replace(inputs([1, 2], [2, 3]), **change), FAST, 0)


def test_a_metric_that_was_not_judged_is_named():
    with pytest.raises(DataError, match=r"verdict.metrics: 'tone' was not judged; judged: correctness"):
        make_report(inputs(BASE, BETTER), VerdictSettings(metrics=("tone",)), 0)


def test_several_metrics_share_the_level():
    given = inputs(BASE, BETTER)
    same = scores({"base": [judgement(row_id, 3, metric="style") for row_id in given.prompts.ids]})
    second = {model: {**found, **same["base"]} for model, found in given.judgements.items()}
    made = report(dataclasses.replace(given, judgements=second))
    assert list(made["metrics"]) == [METRIC, "style"]
    assert made["metrics"]["style"]["mean_difference"] == 0
    assert made["metrics"][METRIC]["p_value_holm"] == pytest.approx(2 * made["p_value"])
    rows, sd = made["num_scored_both"], made["sd_of_differences"]
    assert made["min_detectable_difference"] == min_detectable_difference(rows, sd, 0.975, 0.8)
    leading = report(
        dataclasses.replace(given, judgements=second), FAST.model_copy(update={"metrics": ("style",)})
    )
    assert leading["metric"] == "style"
    assert leading["decision"] == "inconclusive"


def test_equal_differences_are_null_or_said_not_nan():
    made = report(inputs([1, 2, 3, 2, 1, 2], [2, 3, 4, 3, 2, 3]))
    assert made["ci95"] == [1.0, 1.0]
    assert made["min_detectable_difference"] is None
    assert made["notes"]["ci95"] == "all differences are equal"


def test_one_scored_row_is_never_a_verdict():
    made = report(inputs([1], [5]))
    assert made["ci95"] is None
    assert made["decision"] == "inconclusive"


def test_untrusted_judge_leaves_it_to_the_checks():
    checks = {
        "base": {f"p{i:04d}": False for i in range(40)},
        "candidate": {f"p{i:04d}": i % 2 == 0 for i in range(40)},
    }
    settings = FAST.model_copy(update={"when_untrusted": "program_checks"})
    made = report(inputs(BASE, BASE, trust=UNTRUSTED, checks=checks), settings)
    assert (made["decision"], made["clause"]) == ("promote", "program_checks")
    assert made["program_checks"]["overall"]["candidate"] == 0.5
    assert made["program_checks"]["families"]["counting"]["n"] == 40
    unmeasured = report(inputs(BASE, BETTER, trust=None))
    assert (unmeasured["decision"], unmeasured["clause"]) == ("inconclusive", "trust")
    assert unmeasured["judge_trust"]["pairs"] == 0


def test_tables_by_source():
    sources = ["counting", "units"] * 20
    checks = {model: {"p0001": True} for model in ("base", "candidate")}
    made = report(inputs(BASE, BETTER, sources, checks=checks))
    assert {name: row["n"] for name, row in made["by_source"].items()} == {"counting": 20, "units": 20}
    assert list(made["program_checks"]["families"]) == ["units"]
    total = sum(row["n"] * row["difference"] for row in made["by_source"].values())
    assert total / 40 == pytest.approx(made["mean_difference"])


def test_examples_show_gains_then_losses():
    base, candidate = [3, 3, 3, 3, 3, 3], [5, 1, 3, 4, 2, 3]
    settings = FAST.model_copy(update={"num_examples": 4})
    made = report(inputs(base, candidate), settings)
    assert [row["difference"] for row in made["examples"]] == [2, 1, -2, -1]
    assert made["examples"][0]["candidate"] == {
        "answer": "an answer",
        "score": 5.0,
        "feedback": "worth 5",
        "check": None,
    }
    assert len(report(inputs(base, candidate))["examples"]) == 6


def test_trials_keep_no_times_and_no_paths():
    trial = {
        "trial_id": "t1",
        "status": "done",
        "config": {"beta": 0.1},
        "checkpoint": "/somewhere",
        "seconds": 5.0,
        "heldout_accuracy": 0.7,
        "heldout_nll": 1.0,
        "curve": [{"step": 1, "heldout_accuracy": 0.6, "tokens_per_s": 99.0}],
    }
    worse = trial | {"trial_id": "t0", "heldout_nll": 1.5}
    tune = report(inputs(BASE, BETTER, trials=[trial, worse]))["tune"]
    assert tune["best"] == "t1"
    assert [row["trial_id"] for row in tune["trials"]] == ["t0", "t1"]
    assert "checkpoint" not in tune["trials"][0]
    assert tune["trials"][1]["curve"] == [{"step": 1, "heldout_accuracy": 0.6}]


def test_the_level_is_shared_by_looks():
    given = inputs(BASE, BETTER)
    assert decision_alpha(given, FAST) == 0.05
    looks = FAST.model_copy(update={"sequential": Sequential(looks=(0.5, 1.0))})
    first = decision_alpha(dataclasses.replace(given, look=0), looks)
    last = decision_alpha(given, looks)
    assert first == pytest.approx(0.00305, abs=2e-5)  # 2.963 for half of the rows
    assert last == pytest.approx(0.0490, abs=2e-4)  # 1.969 for all
    with pytest.raises(ValueError, match="look 2"):
        decision_alpha(dataclasses.replace(given, look=2), looks)
    early = report(dataclasses.replace(given, look=0), looks)
    assert early["interval"]["level"] == pytest.approx(1 - first)
    assert early["interval"]["ends"][0] < early["ci95"][0]


def test_rows_of_one_conversation_are_one_cluster():
    def turns(*texts):
        return tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))

    rows = [
        Prompt("a", "x", turns("hello")),
        Prompt("b", "y", (Message("system", "be brief"), *turns("hello", "hi", "and?"))),
        Prompt("c", "x", turns("other")),
    ]
    prompts = PromptFacts.of(rows)
    assert cluster_labels(prompts, "none") is None
    by_source = cluster_labels(prompts, "source").tolist()
    assert by_source == [0, 1, 0]
    by_prompt = cluster_labels(prompts, "prompt").tolist()
    assert by_prompt[0] == by_prompt[1] != by_prompt[2]
    assert cluster_labels(prompts, "source", np.array([1, 2])).tolist() == [1, 0]
    assert cluster_labels(prompts, "source", np.array([1])).tolist() == [0]


def test_finite_makes_plain_json():
    value = {"a": math.nan, "b": (1, math.inf), "c": np.float64(2.0), "d": [np.int64(3), None, True]}
    assert finite(value) == {"a": None, "b": [1, None], "c": 2.0, "d": [3, None, True]}


def test_trust_is_passed_on_whole():
    made = report(inputs(BASE, BETTER, trust=TRUSTED | {"consistency": math.nan, "by_source": {}}))
    assert made["judge_trust"]["consistency"] is None


def test_the_gain_is_tested_against_the_wanted_one():
    """A gain of one half is clear of 0 and not of 0.45, whatever its interval at one metric's level says."""
    scores = [5, 4, 4, 3] * 10
    base = [4, 4, 4, 2] * 10
    made = report(inputs(base, scores), FAST.model_copy(update={"min_gain": 0.45}))
    assert made["p_value"] < 0.01
    assert made["p_value_holm"] > 0.05
    assert made["decision"] == "inconclusive"


def test_trust_counts_by_metric():
    def by(metric, trusted):
        return {metric: TRUSTED | {"trusted": trusted}}

    given = inputs(BASE, BETTER)
    for trust, decision in (
        (TRUSTED | {"by_metric": by("correctness", True)}, "promote"),
        (TRUSTED | {"by_metric": by("correctness", False)}, "inconclusive"),
        (TRUSTED | {"by_metric": by("style", True)}, "inconclusive"),
    ):
        made = report(dataclasses.replace(given, trust=trust))
        assert made["decision"] == decision
        assert "by_metric" not in made["judge_trust"]


def test_early_looks_resample_enough_for_their_level():
    assert enough_resamples(500, 0.05) == 1000
    assert enough_resamples(500, 1e-4) == 200_000
    assert enough_resamples(10_000, 0.05) == 10_000


def test_answers_of_two_backends_are_not_compared() -> None:
    rows = inputs(BASE, BETTER)

    def written_by(model, backend):
        return [answer(prompt(number), model, backend=backend) for number in range(len(BASE))]

    one = answer_facts({model: written_by(model, "llama_cpp") for model in rows.answers})
    assert report(dataclasses.replace(rows, answers=one))["engine_backend"] == "llama_cpp"
    other = {**one, **answer_facts({"candidate": written_by("candidate", "openvino")})}
    with pytest.raises(DataError, match="llama_cpp and openvino: one backend"):
        report(dataclasses.replace(rows, answers=other))


def two_looks(given, num_judged=20, **fields):
    """The same run at its first look: the last rows' answers are not judged yet."""
    judged = np.arange(len(given.prompts)) < num_judged
    judgements = {
        model: {metric: first(rows, num_judged) for metric, rows in found.items()}
        for model, found in given.judgements.items()
    }
    return dataclasses.replace(given, judged=judged, judgements=judgements, look=0, **fields)


def first(rows, number):
    """The first rows of one metric's scores."""
    return dataclasses.replace(
        rows,
        ids=rows.ids.take(np.arange(number)),
        scores_B=rows.scores_B[:number],
        expected_B=rows.expected_B[:number],
        has_expected_B=rows.has_expected_B[:number],
        failures=rows.failures.take(np.arange(number)),
    )


TWO_LOOKS = FAST.model_copy(update={"sequential": Sequential(looks=(0.5, 1.0))})


def test_guards_see_all_answers_at_every_look():
    """Else a guard that is broken on all of them would have a chance to hold on some."""
    sources = ["counting"] * 40
    checks = {
        "base": {f"p{i:04d}": True for i in range(40)},
        "candidate": {f"p{i:04d}": i < 30 for i in range(40)},
    }
    given = inputs(BASE, BETTER, sources, checks=checks)
    early, late = report(two_looks(given), TWO_LOOKS), report(given, TWO_LOOKS)
    assert early["guards"] == late["guards"]
    assert early["program_checks"] == late["program_checks"]
    assert (early["decision"], early["clause"]) == ("keep_base", "guard")
    assert "the drop of program-checked accuracy is 0.25" in early["reason"]
    assert (early["num_prompts"], late["num_prompts"]) == (20, 40)


def test_program_checks_decide_by_all_answers_at_every_look():
    """They are there before the first one: half of them would say what all of them do not."""
    checks = {
        "base": {f"p{i:04d}": i >= 20 for i in range(40)},
        "candidate": {f"p{i:04d}": i < 20 for i in range(40)},
    }
    settings = TWO_LOOKS.model_copy(update={"when_untrusted": "program_checks"})
    given = inputs(BASE, BASE, trust=UNTRUSTED, checks=checks)
    early, late = report(two_looks(given), settings), report(given, settings)
    assert (early["decision"], early["clause"]) == ("inconclusive", "program_checks")
    assert "50.0 % to 50.0 % on 40 prompts" in early["reason"]
    assert (late["decision"], late["reason"]) == (early["decision"], early["reason"])
    better = {**checks, "base": dict.fromkeys(checks["base"], False)}
    given = inputs(BASE, BASE, trust=UNTRUSTED, checks=better)
    early, late = report(two_looks(given), settings), report(given, settings)
    assert (early["decision"], early["reason"]) == ("promote", late["reason"])


def test_answers_that_failed_count_at_every_look():
    given = inputs(BASE, BETTER)
    failed = answer_facts(
        {"candidate": [answer(prompt(i), "candidate", "x" if i < 35 else None) for i in range(40)]}
    )
    given = dataclasses.replace(given, answers={**given.answers, **failed})
    for made in (report(two_looks(given), TWO_LOOKS), report(given, TWO_LOOKS)):
        assert made["clause"] == "failures"
        assert "12.5 % of the candidate model's answers" in made["reason"]
    assert report(two_looks(given), TWO_LOOKS)["failures"]["candidate"] == {}


def test_a_look_too_early_for_any_level_is_inconclusive():
    settings = FAST.model_copy(update={"sequential": Sequential(looks=(0.02, 1.0))})
    made = report(two_looks(inputs(BASE, BETTER)), settings)
    assert made["rule"]["alpha"] == pytest.approx(1e-9, rel=0.1)
    assert (made["decision"], made["clause"]) == ("inconclusive", "evidence")


def test_figures_for_planning_and_by_source_know_of_clusters():
    """Twenty copies of ten differences: as rows they could show 0.2 or less, as clusters they cannot."""
    values = [0, 1, 1, 2, 0, 1, 0, 2, 1, 0]
    base, candidate = [3] * 200, [3 + values[i // 20] for i in range(200)]
    given = inputs(base, candidate, [f"s{i // 20}" for i in range(200)])
    rows, clusters = (
        report(given, FAST.model_copy(update={"cluster_by": by, "num_examples": 0}))
        for by in ("none", "source")
    )
    assert rows["min_detectable_difference"] < 0.2
    assert clusters["min_detectable_difference"] > 0.7
    assert rows["by_source"]["s0"]["ci95"] is not None
    assert clusters["by_source"]["s0"]["ci95"] is None
    slopes = [made["score_length_slope"]["same_prompt"]["note"] for made in (rows, clusters)]
    assert slopes == ["all lengths are equal"] * 2


def test_slopes_of_clusters_are_wider():
    given = inputs([3] * 40, [3 + i // 20 for i in range(40)], [f"s{i // 4}" for i in range(40)])
    words = {"base": ["a"] * 40, "candidate": ["a" * (1 + i // 4 * 20) for i in range(40)]}
    answers = answer_facts(
        {m: [answer(prompt(i, f"s{i // 4}"), m, words[m][i]) for i in range(40)] for m in words}
    )
    given = dataclasses.replace(given, answers=answers)
    widths = []
    for by in ("none", "source"):
        made = report(given, FAST.model_copy(update={"cluster_by": by}))
        low, high = made["score_length_slope"]["same_prompt"]["ci95"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]
