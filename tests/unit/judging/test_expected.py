"""Expected scores from the judge's probabilities."""

import math

import pytest

from ray_jobs.judging.expected import TokenChoice, expected_score

FIVE = (1, 2, 3, 4, 5)


def tokens(top: dict[str, float], piece: str = "4") -> list[TokenChoice]:
    return [
        TokenChoice("<score>", {}),
        TokenChoice("\n", {}),
        TokenChoice(piece, top),
        TokenChoice("\n</score>", {}),
    ]


def logs(**probabilities: float) -> dict[str, float]:
    return {name[1:]: math.log(value) for name, value in probabilities.items()}


def test_mean_over_the_rubrics_scores_renormalised() -> None:
    top = logs(_3=0.2, _4=0.3, _9=0.4, _x=0.1)
    assert expected_score(tokens(top), "4\n</score>", FIVE) == pytest.approx((3 * 0.2 + 4 * 0.3) / 0.5)


def test_a_score_spelt_in_two_ways_is_one() -> None:
    top = logs(_3=0.25, _4=0.25) | {" 4": math.log(0.25), "\u0664": math.log(0.25)}
    assert expected_score(tokens(top), "4\n</score>", FIVE) == pytest.approx((3 + 4 + 4) / 3)


def test_tiny_probabilities_do_not_vanish() -> None:
    top = {"1": -1000.0, "2": -1000.0}
    assert expected_score(tokens(top, "2"), "2\n</score>", FIVE) == pytest.approx(1.5)


def test_score_and_line_break_in_one_token() -> None:
    top = {"\n4": math.log(0.5), "\n5": math.log(0.5)}
    pieces = [TokenChoice("<score>", {}), TokenChoice("\n4", top), TokenChoice("\n</score>", {})]
    assert expected_score(pieces, "4\n</score>", FIVE) == pytest.approx(4.5)


def test_unreadable_positions_give_none() -> None:
    top = logs(_4=1.0)
    assert expected_score([], "4", FIVE) is None
    assert expected_score(tokens(logs(_x=1.0)), "4\n</score>", FIVE) is None
    assert (
        expected_score([TokenChoice(">4", top), TokenChoice("\n</score>", {})], "4\n</score>", FIVE) is None
    )
    assert expected_score(tokens(top), "4\n</score>", range(1, 11)) is None
    assert expected_score([TokenChoice("</score>", top)], "4\n</score>", FIVE) is None


def test_broken_characters_before_the_score_do_not_shift_it() -> None:
    pieces = [TokenChoice("\ufffd", {}), TokenChoice("\ufffd", {}), *tokens(logs(_4=1.0))]
    assert expected_score(pieces, "4\n</score>", FIVE) == 4.0
