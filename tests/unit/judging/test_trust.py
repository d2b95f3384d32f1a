"""What the judge's word is worth."""

import math
import random

import pytest

from ray_jobs.errors import DataError
from ray_jobs.judging.settings import TrustSettings
from ray_jobs.judging.trust import JudgeTrust, judge_trust, trust_items, trust_references
from ray_jobs.records import Judgement, Message, Pair


def pair(
    number: int,
    chosen: str = "right",
    rejected: str = "wrong",
    source: str = "s",
    question: str | None = None,
) -> Pair:
    return Pair(f"p{number}", source, (Message("user", question or f"Q{number}"),), chosen, rejected)


def judged(row: str, score: int | None, expected: float | None = None) -> Judgement:
    return Judgement(row, "M", score, expected, None, None if score is not None else "no_score", "", "", 0.0)


def word(pair_: Pair, chosen: int | None, rejected: int | None) -> list[Judgement]:
    return [judged(f"{pair_.id}/chosen", chosen), judged(f"{pair_.id}/rejected", rejected)]


def test_items_are_both_answers() -> None:
    items = trust_items([pair(1), pair(2)])
    assert [(item.id, item.answer) for item in items[:2]] == [
        ("p1/chosen", "right"),
        ("p1/rejected", "wrong"),
    ]
    assert all(item.prompt.reference is None for item in items)
    with pytest.raises(DataError, match="p1"):
        trust_items([pair(1), pair(1)])


def test_agreement_counts_ties_and_silence_half() -> None:
    pairs = [pair(number) for number in range(8)]
    given = [(5, 1)] * 5 + [(2, 2), (1, 5), (None, 1)]
    words = [judgement for one, scores in zip(pairs, given, strict=True) for judgement in word(one, *scores)]
    trust = judge_trust(pairs, words)
    assert (trust.pairs, trust.ties, trust.unscored) == (8, 1, 1)
    assert trust.agreement == pytest.approx(6 / 8)


def trust_with(pairs: list[Pair], agreed: list[bool], **settings: float) -> JudgeTrust:
    words = [
        w for one, right in zip(pairs, agreed, strict=True) for w in word(one, *((2, 1) if right else (1, 2)))
    ]
    return judge_trust(pairs, words, TrustSettings(**settings))


def test_the_exact_interval_decides() -> None:
    """Clopper-Pearson, 61 of 100 at 95 %: 0.5074 to 0.7059; 60 of 100: 0.4972 to 0.6967."""
    pairs = [pair(number) for number in range(100)]

    def trust(agreed: int, margin: float = 0.0) -> tuple[bool, tuple[float, float] | None]:
        found = trust_with(pairs, [number < agreed for number in range(100)], margin=margin)
        return found.trusted, found.ci95

    assert trust(61) == (True, pytest.approx((0.5074, 0.7060), abs=1e-4))
    assert trust(60) == (False, pytest.approx((0.4972, 0.6967), abs=1e-4))
    assert not trust(61, margin=0.01)[0]
    assert not trust(10)[0]


@pytest.mark.parametrize("number", [1, 4, 5, 6, 8, 13, 20, 50])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_coin_is_trusted_no_oftener_than_the_level_says(number: int, level: float) -> None:
    pairs = [pair(at) for at in range(number)]
    trusted = [
        agreed
        for agreed in range(number + 1)
        if trust_with(pairs, [at < agreed for at in range(number)], level=level).trusted
    ]
    assert sum(math.comb(number, agreed) for agreed in trusted) / 2**number <= (1 - level) / 2


def test_one_prompt_with_most_of_the_pairs_does_not_stand_for_many() -> None:
    """A coin thrown once for 50 pairs on one prompt, and once for each of 50 others."""
    pairs = [pair(number, question=f"Q{max(0, number - 49)}") for number in range(100)]
    chance = random.Random(0)
    trusted = 0
    for _ in range(40):
        throws = [chance.random() < 0.5 for _ in range(51)]
        trusted += trust_with(pairs, [throws[max(0, number - 49)] for number in range(100)]).trusted
    assert trusted <= 1


def test_expected_scores_break_ties_of_scores() -> None:
    one = pair(1)
    words = [judged("p1/chosen", 3, 3.2), judged("p1/rejected", 3, 2.9)]
    assert judge_trust([one], words).agreement == 1.0
    assert judge_trust([one], [judged("p1/chosen", 3, 3.2), judged("p1/rejected", 3)]).ties == 1


def test_pairs_on_one_prompt_are_not_independent() -> None:
    apart = [pair(number) for number in range(40)]
    together = [pair(number, question=f"Q{number // 4}") for number in range(40)]
    intervals = []
    for pairs in (apart, together):
        words = [
            w for number, one in enumerate(pairs) for w in word(one, *((2, 1) if number % 4 else (1, 2)))
        ]
        trust = judge_trust(pairs, words)
        assert trust.agreement == 0.75
        assert trust.ci95 is not None
        intervals.append(trust.ci95[1] - trust.ci95[0])
    assert intervals[1] > 1.5 * intervals[0]


def test_slices() -> None:
    pairs = [pair(1, "aaaa", "b", "x"), pair(2, "a", "bbbb", "x"), pair(3, "aaaa", "bbbb", "y")]
    words = [*word(pairs[0], 5, 1), *word(pairs[1], 1, 5), *word(pairs[2], 5, 1)]
    trust = judge_trust(pairs, words)
    assert {label: part.agreement for label, part in trust.by_source.items()} == {"x": 0.5, "y": 1.0}
    assert {label: part.agreement for label, part in trust.by_length_difference.items()} == {
        "chosen_longer": 1.0,
        "chosen_shorter": 0.0,
        "similar": 1.0,
    }


def test_consistency_is_the_share_of_same_scores() -> None:
    one = pair(1)
    repeats = [judged("p1/chosen", 5), judged("p1/rejected", 2)]
    assert judge_trust([one], word(one, 5, 1), repeats=repeats).consistency == 0.5
    assert judge_trust([one], word(one, 5, 1)).consistency is None
    silence = [judged("p1/chosen", None), judged("p1/rejected", 1)]
    assert judge_trust([one], word(one, None, 1), repeats=silence).consistency == 1.0
    assert judge_trust([one], word(one, None, None), repeats=silence).consistency is None


def test_a_reference_is_another_right_answer() -> None:
    same = [
        pair(1, "Paris", "London", question="Q"),
        pair(2, "It is Paris.", "Rome", question="Q"),
        pair(3, "7", "8"),
    ]
    assert trust_references(same, "other") == {"p1": "It is Paris.", "p2": "Paris"}
    assert trust_references(same, "chosen")["p3"] == "7"
    assert trust_references([pair(1, "Paris"), pair(1, "Paris ")], "other") == {}
    references = trust_references(same, "other")
    assert [item.id for item in trust_items(same, references)] == [
        "p1/chosen",
        "p1/rejected",
        "p2/chosen",
        "p2/rejected",
    ]
    references = trust_references(same, "chosen")
    words = [w for one in same for w in word(one, 5, 1)]
    assert judge_trust(same, words, references=references).self_referenced == 1


def test_a_known_wrong_answer_is_no_reference() -> None:
    pairs = [pair(1, "Paris", "London", question="Q"), pair(2, "London", "Rome", question="Q")]
    assert "p1" not in trust_references(pairs, "other")


def test_nothing_judged_is_not_trusted() -> None:
    trust = judge_trust([pair(1)], [])
    assert (trust.pairs, trust.trusted, trust.ci95) == (0, False, None)


def test_all_pairs_are_kept_where_a_metric_wants_no_reference() -> None:
    pairs = [pair(1, "Paris", "London", question="Q"), pair(2, "It is Paris.", "Rome", question="Q"), pair(3)]
    items = trust_items(pairs, trust_references(pairs, "other"), keep_all=True)
    assert [item.prompt.reference for item in items[::2]] == ["It is Paris.", "Paris", None]
