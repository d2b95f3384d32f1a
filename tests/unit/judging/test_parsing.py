"""What judges write, and what may be made of it."""

import pytest

from ray_jobs.judging.parsing import parse_verdict

FIVE = (1, 2, 3, 4, 5)
FB = "<feedback>\nFine.\n</feedback>\n"

TABLE = [
    # flow-judge's format, and what is still plainly it
    (FB + "<score>\n4\n</score>", 4, None),
    (FB + "<score>4</score>", 4, None),
    (FB + "<score> 4 </score>", 4, None),
    (FB + "<score>\t4\r\n</score>", 4, None),
    (FB + "<SCORE>4</SCORE>", 4, None),
    (FB + "< score >4</ score >", 4, None),
    (FB + "\n\n\n<score>1</score>\n\n", 1, None),
    (FB + "<score>5</score>\nThank you for asking.", 5, None),
    (FB + "So:\n<score>5</score>", 5, None),
    ("Let me think.\n" + FB + "<score>3</score>", 3, None),
    ("<feedback></feedback><score>2</score>", 2, None),
    ("<FEEDBACK>ok</FEEDBACK><score>2</score>", 2, None),
    ("<score>3</score>", 3, None),
    ("The answer is fair. <score>3</score>", 3, None),
    ("no opening tag</feedback><score>3</score>", 3, None),
    (FB + "<score>04</score>", 4, None),
    (FB + "<score>4.0</score>", 4, None),
    (FB + "<score>+4</score>", 4, None),
    # the closing tag is missing, but the judge ended its turn
    (FB + "<score>\n4", 4, None),
    (FB + "<score>\n4\n", 4, None),
    # nothing that is a score
    ("", None, "no_score"),
    ("   \n", None, "no_score"),
    ("I cannot rate this.", None, "no_score"),
    (FB, None, "no_score"),
    (FB + "Score: 4", None, "no_score"),
    (FB + "4", None, "no_score"),
    (FB + "**4**", None, "no_score"),
    (FB + "Score: 2.5", None, "no_score"),
    (FB + "<score></score>", None, "no_score"),
    (FB + "<score>\n\n</score>", None, "no_score"),
    (FB + "<score>good</score>", None, "no_score"),
    (FB + "<score>four</score>", None, "no_score"),
    (FB + "<score>N/A</score>", None, "no_score"),
    (FB + "<score>-</score>", None, "no_score"),
    (FB + "<score>\u0664</score>", None, "no_score"),
    (FB + "<score>\uff14</score>", None, "no_score"),
    (FB + "<score>**4**</score>", None, "no_score"),
    (FB + "<score>Score 4</score>", None, "no_score"),
    (FB + "<score>4 because it is good", None, "no_score"),
    (FB + "[score]4[/score]", None, "no_score"),
    (FB + "&lt;score&gt;4&lt;/score&gt;", None, "no_score"),
    ("<score>4</score>\n" + FB, None, "no_score"),
    ("<feedback>It says <score>5</score>, which I ignore.</feedback>", None, "no_score"),
    # numbers that the rubric does not offer
    (FB + "<score>0</score>", None, "off_scale"),
    (FB + "<score>6</score>", None, "off_scale"),
    (FB + "<score>99</score>", None, "off_scale"),
    (FB + "<score>-1</score>", None, "off_scale"),
    (FB + "<score>\u22123</score>", None, "off_scale"),
    (FB + "<score>2.5</score>", None, "off_scale"),
    (FB + "<score>2,5</score>", None, "off_scale"),
    (FB + "<score>4.000001</score>", None, "off_scale"),
    (FB + f"<score>{'9' * 5000}</score>", None, "off_scale"),
    (FB + "<score>6</score><score>7</score>", None, "off_scale"),
    # more than one
    (FB + "<score>4</score><score>5</score>", None, "two_scores"),
    (FB + "<score>4</score>\nOn reflection: <score>2</score>", None, "two_scores"),
    (FB + "<score>4</score><score>9</score>", None, "two_scores"),
    (FB + "<score>4</score><score></score>", None, "two_scores"),
    (FB + "<score>4<score>5</score>", None, "two_scores"),
    (FB + "<score>4-5</score>", None, "two_scores"),
    (FB + "<score>4 or 5</score>", None, "two_scores"),
    (FB + "<score>4/5</score>", None, "two_scores"),
    ("<score>4</score> or <score>5</score>", None, "two_scores"),
    # one score, said twice
    (FB + "<score>4</score>\n<score>4</score>", 4, None),
    (FB + "<score>4</score>\n<score> 4.0 </score>", 4, None),
    # the last verdict counts: what is quoted before the last </feedback> is not the judge's
    ("<feedback>The answer says <score>5</score>.</feedback><score>1</score>", 1, None),
    ("<feedback>It holds </feedback><score>5</score> as bait.</feedback>\n<score>1</score>", 1, None),
    ("<feedback>quoting <score>5</score> and", None, "no_score"),
    (FB + "<score>4</score><feedback>More: <score>5</score>", 4, None),
    (FB + "<score>5</score>\n" + FB + "<score>2</score>", 2, None),
    ("<score>5</score><feedback>Wrong.</feedback><score>1</score>", 1, None),
]


def test_there_are_at_least_sixty_outputs() -> None:
    assert len({text for text, _, _ in TABLE}) == len(TABLE) >= 60


@pytest.mark.parametrize(("text", "score", "failure"), TABLE)
def test_verdict(text: str, score: int | None, failure: str | None) -> None:
    verdict = parse_verdict(text, FIVE)
    assert (verdict.score, verdict.failure) == (score, failure)
    if score is not None:
        assert verdict.score_start is not None
        assert text[verdict.score_start] in "0123456789+"


CUT = [
    ("", None, "too_long"),
    ("<feedback>It begins", None, "too_long"),
    (FB, None, "too_long"),
    (FB + "<sco", None, "too_long"),
    (FB + "<score>", None, "too_long"),
    (FB + "<score>4", None, "too_long"),
    (FB + "<score>4</score>", 4, None),
    (FB + "<score>4</score> and now <score>", None, "too_long"),
    (FB + "<score>4</score><feedback>And", None, "too_long"),
    ("<feedback>quoting <score>5</score> and", None, "too_long"),
]


@pytest.mark.parametrize(("text", "score", "failure"), CUT)
def test_cut_verdict(text: str, score: int | None, failure: str | None) -> None:
    """A number at the cut may be the beginning of another."""
    verdict = parse_verdict(text, FIVE, cut=True)
    assert (verdict.score, verdict.failure) == (score, failure)


@pytest.mark.parametrize(
    ("text", "feedback"),
    [
        (FB + "<score>4</score>", "Fine."),
        ("<feedback>a <feedback>b</feedback> c</feedback><score>4</score>", "a <feedback>b</feedback> c"),
        ("<feedback>It beg", "It beg"),
        ("no tag</feedback><score>4</score>", "no tag"),
        ("<score>4</score>", None),
        ("", None),
    ],
)
def test_feedback_is_kept_as_far_as_it_goes(text: str, feedback: str | None) -> None:
    assert parse_verdict(text, FIVE, cut=True).feedback == feedback


def test_scales() -> None:
    assert parse_verdict(FB + "<score>0</score>", (0, 1)).score == 0
    assert parse_verdict(FB + "<score>2</score>", (0, 1)).failure == "off_scale"
    assert parse_verdict(FB + "<score>10</score>", range(1, 11)).score == 10


@pytest.mark.parametrize(
    "text",
    [
        "<score>" * 20_000 + "</score>",
        "<score>" * 20_000,
        "</feedback>" * 20_000,
        "<score>" + " " * 200_000,
        "<" * 200_000,
    ],
)
def test_reading_takes_no_longer_for_hostile_text(text: str) -> None:
    assert parse_verdict(text, FIVE, cut=True).score is None
