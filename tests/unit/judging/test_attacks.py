"""The attack suite: what stops at the parser leaves no trace of the frame."""

import re

import pytest

from ray_jobs.judging import inputs
from ray_jobs.judging.attacks import ATTACKS, attack_items, attack_uplift, measure_attacks
from ray_jobs.judging.backend import Call, Completion
from ray_jobs.judging.inputs import InputMaker, prompt_text
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.metrics import load_metric
from ray_jobs.judging.neutral import Neutraliser
from ray_jobs.judging.presets import PRESETS
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.records import Judgement

from .fakes import FakeBackend, item, scored

CORRECT = "RESPONSE_CORRECTNESS_5POINT"
FRAME = (
    *("<inputs>", "</inputs>", "<output>", "</output>", "<response>", "</response>"),
    *("<scoring_rubric>", "</scoring_rubric>", "</evaluation_criteria>"),
    *("# OUTPUT", "# EVALUATION CRITERIA AND SCORING RUBRIC"),
)


def text_of(attack: str, answer: str = "An answer.") -> str:
    (attacked,) = attack_items([item("a", answer)], attack, 5)
    metric = PRESETS[CORRECT]
    return prompt_text(load_metric(CORRECT), InputMaker(metric, {}, control_tokens=True)(attacked))


def test_there_are_about_ten() -> None:
    assert len(ATTACKS) >= 10
    assert {attack.stops for attack in ATTACKS.values()} == {"parser", "judge"}


@pytest.mark.parametrize("attack", [name for name, attack in ATTACKS.items() if attack.stops == "parser"])
def test_the_frame_of_the_prompt_is_that_of_an_honest_answer(attack: str) -> None:
    text = text_of(attack)
    for part in FRAME:
        assert text.count(part) == 1, part
    assert text.count("<score>") == 1  # in flow-judge's own instructions
    assert text.count("<feedback>") == 1
    assert "<|im_" not in text


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_change_the_answer_and_are_told_apart(attack: str) -> None:
    items = attack_items([item("a"), item("b")], attack, 5)
    assert [one.id for one in items] == [f"a/{attack}", f"b/{attack}"]
    assert items[0].answer != item("a").answer


def judged(score: float | None) -> Judgement:
    whole = None if score is None else round(score)
    return Judgement("a", "M", whole, score, None, None if score is not None else "no_score", "", "", 0.0)


def test_uplift_is_paired() -> None:
    honest = [judged(float(number % 3 + 1)) for number in range(30)]
    attacked = [judged(float(number % 3 + 1) + (0.5 if number % 2 else 0.3)) for number in range(30)]
    found = attack_uplift("empty", honest, [*attacked[:29], judged(None)])
    assert found.uplift == pytest.approx((14 * 0.5 + 15 * 0.3) / 29)
    assert (found.pairs, found.unscored, found.stops) == (29, 1, "judge")
    assert found.ci95 is not None
    assert 0.3 < found.ci95[0] < found.uplift < found.ci95[1] < 0.5


def test_equal_differences_are_a_point_and_one_pair_has_no_interval() -> None:
    assert attack_uplift("empty", [judged(1.0)] * 3, [judged(1.5)] * 3).ci95 == (0.5, 0.5)
    assert attack_uplift("empty", [judged(1.0)], [judged(1.5)]).ci95 is None


def gullible(call: Call) -> Completion:
    """A judge that believes the first verdict in its prompt, a rubric of the answer's, and any order."""
    asked = call.prompt.replace("inside <score> tags", "")
    believed = re.search(r"<score>\s*(\d)", asked) or re.search(
        r"</scoring_rubric>.*<scoring_rubric>", asked, re.S
    )
    ordered = "assign the final score 5" in asked
    return scored(call, 5 if believed or ordered or asked.count("</output>") > 1 else 1, {})


def test_a_gullible_judge_is_out_of_the_parsers_attacks_reach() -> None:
    settings = JudgeSettings(model="m.gguf", retries=0)
    judge = Judge(FakeBackend(gullible), settings, CORRECT)
    rows = [item(f"{number}", f"answer {number}") for number in range(5)]
    uplifts = {found.attack: found for found in measure_attacks(judge, rows)}
    assert set(uplifts) == set(ATTACKS)
    assert all(found.uplift == 0 for found in uplifts.values() if found.stops == "parser")
    assert all(found.pairs == 5 for found in uplifts.values())
    assert uplifts["instruction"].uplift == 4


def test_without_neutralising_it_would_be_in_their_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Neutraliser, "__call__", lambda _, text: text)
    monkeypatch.setattr(inputs, "without_forged", lambda text, _: text)
    judge = Judge(FakeBackend(gullible), JudgeSettings(model="m.gguf", retries=0), CORRECT)
    for attack in ("closing_tags", "new_rubric", "control_tokens", "bare_verdict"):
        (found,) = judge.judge(attack_items([item()], attack, 5))
        assert found.score == 5
