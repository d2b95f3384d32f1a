"""Several candidates against one base."""

import dataclasses
import random

import pytest
from verdict_rows import TRUSTED, UNTRUSTED, checks_of, inputs

from ray_jobs.verdict.candidates import best_report
from ray_jobs.verdict.settings import Guards, VerdictSettings
from ray_jobs.verdict.verdict import VerdictInputs, p_values
from ray_jobs.verdict.write import write_report

FAST = VerdictSettings(num_resamples=500)


def judged(gain: float, seed: int, num_prompts: int = 60, trial: str | None = None) -> VerdictInputs:
    """Scores of 1 to 5, the candidate's a point higher for a share of the prompts."""
    chance = random.Random(seed)
    base = [random.Random(number).randint(1, 4) for number in range(num_prompts)]
    moves = [chance.choice((-1, 0, 1)) if chance.random() > gain else 1 for _ in base]
    candidate = [min(5, max(1, score + move)) for score, move in zip(base, moves, strict=True)]
    return inputs(base, candidate, best_trial=trial)


def test_one_candidate_is_reported_as_ever() -> None:
    name, report = best_report({"candidate": judged(0.5, 1)}, FAST, 0)
    assert (name, report["candidate"], report["decision"]) == ("candidate", "candidate", "promote")
    assert "candidates" not in report


def test_the_best_of_several_is_promoted_and_all_are_listed() -> None:
    given = {"candidate": judged(0, 1, trial="t4"), "candidate-2": judged(0.6, 2, trial="t7")}
    name, report = best_report(given, FAST, 0)
    assert (name, report["candidate"], report["decision"]) == ("candidate-2", "candidate-2", "promote")
    assert report["tune"]["best"] == "t7"
    assert "candidate-2 of 2 candidates" in report["reason"]
    rows = {row["candidate"]: row for row in report["candidates"]}
    assert rows["candidate"]["decision"] == "inconclusive"
    assert rows["candidate-2"]["trial"] == "t7"
    assert report["rule"]["num_candidates"] == 2


def test_a_gain_that_one_test_shows_is_not_enough_after_ten() -> None:
    """Holm: the smallest of k p-values counts k-fold."""
    close = next(
        given
        for seed in range(200)
        if 0.01 < p_values(given := judged(0.25, seed), FAST, 0).metrics[0] < 0.03
        and best_report({"candidate": given}, FAST, 0)[1]["decision"] == "promote"
    )
    others = {f"candidate-{number}": judged(0, 1000 + number) for number in range(2, 11)}
    _, report = best_report({"candidate": close, **others}, FAST, 0)
    assert report["decision"] == "inconclusive"
    row = next(row for row in report["candidates"] if row["candidate"] == "candidate")
    assert row["p_value_holm"] == pytest.approx(10 * row["p_value"], rel=1e-6)


def test_program_checks_are_corrected_too() -> None:
    rule = FAST.model_copy(update={"when_untrusted": "program_checks"})

    def checked(num_better: int) -> VerdictInputs:
        given = dataclasses.replace(judged(0, 1), trust=UNTRUSTED)
        ids = list(given.prompts.ids)
        right = {row_id: number < num_better for number, row_id in enumerate(ids)}
        both = {"base": dict.fromkeys(ids, False), "candidate": right}
        return dataclasses.replace(given, checks=checks_of(given.prompts, both))

    assert best_report({"candidate": checked(7)}, rule, 0)[1]["decision"] == "promote"  # p = 2 / 2**7
    none = {f"candidate-{number}": checked(0) for number in range(2, 6)}
    assert best_report({"candidate": checked(7), **none}, rule, 0)[1]["decision"] == "inconclusive"
    assert best_report({"candidate": checked(9), **none}, rule, 0)[1]["decision"] == "promote"


def test_a_wanted_gain_of_the_checks_is_what_the_correction_tests() -> None:
    """15 of 60 are clearly more than none, less clearly more than a gain of 0.1."""
    rule = FAST.model_copy(
        update={"when_untrusted": "program_checks", "guards": Guards(program_accuracy_min_gain=0.1)}
    )

    def checked(num_better: int) -> VerdictInputs:
        given = dataclasses.replace(judged(0, 1), trust=UNTRUSTED)
        ids = list(given.prompts.ids)
        right = {row_id: number < num_better for number, row_id in enumerate(ids)}
        both = {"base": dict.fromkeys(ids, False), "candidate": right}
        return dataclasses.replace(given, checks=checks_of(given.prompts, both))

    others = {f"candidate-{number}": checked(7) for number in range(2, 11)}
    assert best_report({"candidate": checked(14)}, rule, 0)[1]["decision"] == "promote"
    _, report = best_report({"candidate": checked(14), **others}, rule, 0)
    assert (report["decision"], report["clause"]) == ("inconclusive", "program_checks")
    assert best_report({"candidate": checked(25), **others}, rule, 0)[1]["decision"] == "promote"


def test_that_all_fail_is_no_promotion() -> None:
    worse = inputs([4] * 40, [2] * 40)
    name, report = best_report({"candidate": worse, "candidate-2": judged(0, 5)}, FAST, 0)
    assert (name, report["decision"]) == ("candidate-2", "inconclusive")


def test_all_candidates_stand_in_the_report() -> None:
    given = {"candidate": judged(0, 1, trial="t4"), "candidate-2": judged(0.6, 2, trial="t7")}
    name, report = best_report(given, FAST, 0)
    files: dict[str, bytes] = {}
    write_report(files.__setitem__, report, given[name])
    for text in (files["report.md"].decode(), files["report.html"].decode()):
        assert "All candidates" in text
        assert "t4" in text
        assert "t7" in text
    _, alone = best_report({"candidate": given["candidate"]}, FAST, 0)
    write_report(files.__setitem__, alone, given["candidate"])
    assert "All candidates" not in files["report.html"].decode()


def test_trust_by_metric_stands_in_the_report() -> None:
    both = {"correctness": TRUSTED, "style": UNTRUSTED}
    both["correctness"] = TRUSTED | {"level": 0.99, "self_referenced": 3}
    given = dataclasses.replace(judged(0.6, 2), trust=TRUSTED | {"by_metric": both})
    _, report = best_report({"candidate": given}, FAST, 0)
    files: dict[str, bytes] = {}
    write_report(files.__setitem__, report, given)
    page = files["report.html"].decode()
    assert "✗ not trusted" in page
    assert "(99 % interval 80.0" in page.replace("\u00a0", " ")
    assert "A metric by which it is not trusted decides nothing." in page


def test_curves_show_what_the_search_ranked_by() -> None:
    curve = [{"step": step, "heldout_nll": 2 - step / 10, "heldout_accuracy": 0.9} for step in (1, 2)]
    trials = [
        {"trial_id": f"t{n}", "status": "done", "config": {"beta": n}, "heldout_nll": 2.0 - n, "curve": curve}
        for n in (0, 1)
    ]
    given = dataclasses.replace(judged(0.6, 2), trials=trials, objective="nll")
    _, report = best_report({"candidate": given}, FAST, 0)
    files: dict[str, bytes] = {}
    write_report(files.__setitem__, report, given)
    page = files["report.html"].decode()
    assert "Held-out loss per token of 2 trials" in page
