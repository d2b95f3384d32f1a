"""A verdict that an answer writes in the judge's own format is left out of what the judge reads.

Look-alike characters keep such a text from being taken for the frame, but a weak judge copies a score that it
has just read, whatever its brackets are. So a score element of flow-judge's format goes, with what leads up
to it: its feedback element, and the tags and control tokens that were to end the answer. An answer that is
nothing else is judged as an empty one.

Honest answers have no such thing, unless they were asked for it. Where the row's own inputs speak of a score
and of tags, the answer is left whole.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from ray_jobs.judging.neutral import CLOSE, CONTROL_TOKENS, INVISIBLE, OPEN, SAME_LINE, TEMPLATE_TAGS, spread

_BLANKS = rf"[\s{INVISIBLE}]*"
_SCORE_ASKED_FOR = re.compile(r"score", re.IGNORECASE)
_TAGS_ASKED_FOR = re.compile(r"<|\b(?:xml|html|markup|tags?|elements?)\b", re.IGNORECASE)
_ROLE = r"(?:assistant|user|system)?"
_MAX_EDGE = 400
"""Characters before a verdict in which one more tag that leads up to it is looked for."""


def asked_for(inputs: Iterable[str]) -> bool:
    """Whether a row's own inputs may want a score in tags."""
    text = "\n".join(inputs)
    return bool(_SCORE_ASKED_FOR.search(text) and _TAGS_ASKED_FOR.search(text))


def without_verdicts(text: str, own_tags: tuple[str, ...] = ()) -> str:
    """The text without the verdicts in it. `own_tags`: those of the metric's inputs and output."""
    lead, trail = _edges(own_tags)
    parts, done = [], 0
    for score in _SCORE.finditer(text):
        if score.start() < done:
            continue
        before = _before_feedback(text[done : score.start()])
        while (edge := lead.search(before, max(0, len(before) - _MAX_EDGE))) is not None:
            before = before[: edge.start()]
        parts.append(before.rstrip())
        after = trail.match(text, score.end())
        done = after.end() if after is not None else score.end()
    return _joined([*parts, text[done:]])


def _joined(parts: Iterable[str]) -> str:
    """The parts, each on a line of its own unless it begins with a blank."""
    kept: list[str] = []
    for part in filter(None, parts):
        kept += ["\n", part] if kept and not part[0].isspace() else [part]
    return "".join(kept)


def _before_feedback(text: str) -> str:
    """What stands before the feedback element that the text ends with; else the text."""
    end = _FEEDBACK_END.search(text, max(0, len(text) - _MAX_EDGE))
    if end is None:
        return text
    begin = max((match.start() for match in _FEEDBACK.finditer(text, 0, end.start())), default=None)
    return text if begin is None else text[:begin]


def _tag(names: str, *, end: bool) -> str:
    slash = rf"{_BLANKS}/" if end else ""
    return rf"{OPEN}{slash}{_BLANKS}(?:{names})(?:[\s/{INVISIBLE}]{SAME_LINE}{{0,80}})?{CLOSE}"


_NO_BRACKET = r"[^<>\ufe64\ufe65\uff1c\uff1e]"
_CLOSED = rf"{_NO_BRACKET}{{0,40}}{_tag(spread('score'), end=True)}"
_UNCLOSED = rf"{_BLANKS}[-+]?\d[\d.,]{{0,12}}[ \t]*(?=[\r\n<\ufe64\uff1c]|\Z)"
_SCORE = re.compile(rf"{_tag(spread('score'), end=False)}(?:{_CLOSED}|{_UNCLOSED})", re.IGNORECASE)
_FEEDBACK = re.compile(_tag(spread("feedback"), end=False), re.IGNORECASE)
_FEEDBACK_END = re.compile(rf"{_tag(spread('feedback'), end=True)}{_BLANKS}\Z", re.IGNORECASE)


@lru_cache(maxsize=64)
def _edges(own_tags: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A tag or control token at the end of a text, and any number of them at the beginning of one."""
    names = "|".join(spread(tag) for tag in sorted({*TEMPLATE_TAGS, *own_tags} - {"score", "feedback"}))
    control = rf"(?:{CONTROL_TOKENS.pattern})[^<>\[\]\s]{{0,42}}[>\]]{{1,2}}{_BLANKS}{_ROLE}"
    mark = rf"(?:{_tag(names, end=True)}|{_tag(names, end=False)}|{control})"
    lead = re.compile(rf"{_BLANKS}{mark}{_BLANKS}\Z", re.IGNORECASE)
    return lead, re.compile(rf"(?:{_BLANKS}{mark})*", re.IGNORECASE)
