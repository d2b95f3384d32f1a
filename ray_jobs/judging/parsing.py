"""What a judge said, read strictly: a score that the rubric offers, or the reason why there is none.

Only text that the judge itself wrote comes in here, never its prompt. Two rules choose the verdict:

1. The last verdict counts: what stands before the last `</feedback>` is reasoning, which may quote the answer
with any tags in it, so a score there is not the judge's. 2. After it there is one score. The same score said
twice is one score; different ones are `two_scores`, because to take either would be to make it up.

A judge that writes no feedback at all has its whole text read by rule 2. flow-judge's own parser takes the
first match anywhere, checks no range, and returns -1 for what it cannot read.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Failure = Literal["no_score", "off_scale", "two_scores", "too_long", "timeout", "too_long_prompt", "error"]

PASSING_FAILURES = frozenset({"timeout", "error"})
"""Failures of the moment: another run may well succeed, so they are not remembered."""
WORDLESS = frozenset({"timeout", "too_long_prompt", "error"})
"""Failures in which there is nothing of the judge to read."""

_FEEDBACK_END = re.compile(r"</\s*feedback\s*>", re.IGNORECASE)
_FEEDBACK_START = re.compile(r"<\s*feedback\s*>", re.IGNORECASE)
_SCORE = re.compile(r"<\s*score\s*>(.*?)(?:</\s*score\s*>|(?=<\s*score\s*>)|\Z)", re.IGNORECASE | re.DOTALL)
_SCORE_EDGE = re.compile(r"<(/?)\s*score\s*>", re.IGNORECASE)
_NUMBER = re.compile(r"[-+\u2212]?\d+(?:[.,]\d+)?", re.ASCII)
_ONE_NUMBER = re.compile(r"\s*([-+\u2212]?\d{1,12}(?:\.\d{1,12})?)\s*", re.ASCII)


@dataclass(frozen=True)
class Verdict:
    """`score` is null exactly when `failure` says why; `score_start` is its first character in the judge's
    text."""

    score: int | None
    feedback: str | None
    failure: Failure | None = None
    score_start: int | None = None


def parse_verdict(text: str, scores: Collection[int], *, cut: bool = False) -> Verdict:
    """Reads a judge's text. `scores` are those of the rubric; `cut`: the judge ran out of tokens."""
    ends = list(_FEEDBACK_END.finditer(text))
    begin = ends[-1].end() if ends else 0
    unended = _FEEDBACK_START.search(text, begin)
    end = unended.start() if unended is not None else len(text)
    feedback = _feedback_of(text, ends[-1].start() if ends else None)
    if cut and (unended is not None or not _ends_with_score(text, begin)):
        return Verdict(None, feedback, "too_long")
    readings = [_read_score(match[1], match.start(1), scores) for match in _SCORE.finditer(text, begin, end)]
    return _settle(readings, feedback)


def _ends_with_score(text: str, begin: int) -> bool:
    """Whether the last score tag closes: a number at the cut may be the beginning of another."""
    edges = _SCORE_EDGE.findall(text, begin)
    return bool(edges) and edges[-1] == "/"


def _settle(readings: list[tuple[int | None, Failure | None, int]], feedback: str | None) -> Verdict:
    if not readings:
        return Verdict(None, feedback, "no_score")
    if len({(score, failure) for score, failure, _ in readings}) > 1:
        return Verdict(None, feedback, "two_scores")
    score, failure, start = readings[-1]
    return Verdict(score, feedback, failure, None if failure else start)


def _read_score(content: str, start: int, scores: Collection[int]) -> tuple[int | None, Failure | None, int]:
    """The score, or why it is none, and where it starts; `start` is where the content does."""
    number = _ONE_NUMBER.fullmatch(content)
    if number is None:
        return None, _why_unread(content), start
    score = _offered(number[1], scores)
    return score, None if score is not None else "off_scale", start + number.start(1)


def _why_unread(content: str) -> Failure:
    if len(_NUMBER.findall(content)) > 1:
        return "two_scores"
    return "off_scale" if _NUMBER.fullmatch(content.strip()) else "no_score"


def _offered(number: str, scores: Collection[int]) -> int | None:
    value = Decimal(number.replace("\u2212", "-"))
    return int(value) if value in scores else None


def _feedback_of(text: str, end: int | None) -> str | None:
    """What the judge gave as reasons: from the first `<feedback>` to the last `</feedback>`, cut text
    included."""
    start = _FEEDBACK_START.search(text)
    if start is None and end is None:
        return None
    begin = start.end() if start is not None and (end is None or start.end() <= end) else 0
    return text[begin:end].strip()
