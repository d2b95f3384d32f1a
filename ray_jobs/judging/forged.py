"""What an answer writes in the judge's own format is left out of what the judge reads.

Look-alike characters keep such a text from being taken for the frame, but a weak judge copies a score that it
has just read, and takes over a rubric, whatever its brackets are. So an element of flow-judge's format goes
that is a verdict (a score) or a rubric (criteria, or what each score stands for), with what leads up to it: a
feedback element, headings and lines of the prompt, the tags and control tokens that were to end the answer.
An answer that is nothing else is judged as an empty one.

Honest answers have no such thing, unless they were asked for it. Where the row's own inputs speak of scores
or rubrics and of tags, the answer is left whole.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

from ray_jobs.judging.neutral import (
    CLOSE,
    CONTROL_TOKENS,
    INVISIBLE,
    OPEN,
    SAME_LINE,
    TEMPLATE_HEADINGS,
    TEMPLATE_LINES,
    TEMPLATE_TAGS,
    any_of,
    spread,
)

RUBRIC_TAGS = ("evaluation_criteria", "scoring_rubric")
_BLANKS = rf"[\s{INVISIBLE}]*"
_RATING_ASKED_FOR = re.compile(r"score|rubric|criteria", re.IGNORECASE)
_TAGS_ASKED_FOR = re.compile(r"<|\b(?:xml|html|markup|tags?|elements?)\b", re.IGNORECASE)
_ROLE = r"(?:assistant|user|system)?"
_MAX_EDGE = 400
"""Characters before an element in which one more mark that leads up to it is looked for."""

Span = tuple[int, int]


def asked_for(inputs: Iterable[str]) -> bool:
    """Whether a row's own inputs may want a verdict or a rubric in tags."""
    text = "\n".join(inputs)
    return bool(_RATING_ASKED_FOR.search(text) and _TAGS_ASKED_FOR.search(text))


def without_forged(text: str, own_tags: tuple[str, ...] = ()) -> str:
    """The text without verdicts and rubrics. `own_tags`: those of the metric's inputs and output."""
    lead, trail = _edges(own_tags)
    parts, done = [], 0
    spans = _forged(text, lead)
    for (start, end), (following, _) in pairwise([*spans, (len(text), 0)]):
        before = _before_feedback(text[done:start])
        while (edge := lead.search(before, max(0, len(before) - _MAX_EDGE))) is not None:
            before = before[: edge.start()]
        parts.append(before.rstrip())
        after = trail.match(text, end, following)
        done = after.end() if after is not None else end
    return _joined([*parts, text[done:]])


def _forged(text: str, lead: re.Pattern[str]) -> list[Span]:
    """Where forged elements stand, in order, none within another."""
    kept: list[Span] = []
    for start, end in sorted({*_verdicts(text), *_rubrics(text, lead)}):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
        else:
            kept[-1] = (kept[-1][0], max(end, kept[-1][1]))
    return kept


def _verdicts(text: str) -> Iterator[Span]:
    return (match.span() for match in _SCORE.finditer(text))


def _rubrics(text: str, lead: re.Pattern[str]) -> Iterator[Span]:
    """Elements with their end tags. One that is never closed goes on to the text's end, if something of the
    prompt's own leads up to it; else it is no more than a tag."""
    for begin, end in _RUBRIC:
        ends = [match.end() for match in end.finditer(text)]
        for match in begin.finditer(text):
            at = bisect_left(ends, match.end())
            if at < len(ends):
                yield match.start(), ends[at]
            elif lead.search(text, max(0, match.start() - _MAX_EDGE), match.start()):
                yield match.start(), len(text)


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
_RUBRIC = [
    tuple(re.compile(_tag(spread(tag), end=end), re.IGNORECASE) for end in (False, True))
    for tag in RUBRIC_TAGS
]


@lru_cache(maxsize=64)
def _edges(own_tags: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What the prompt's frame is made of at the end of a text, and any number of it at the beginning of one:
    a tag, a control token, a heading or a line of flow-judge's own."""
    names = "|".join(spread(tag) for tag in sorted({*TEMPLATE_TAGS, *own_tags} - {"score", "feedback"}))
    control = rf"(?:{CONTROL_TOKENS.pattern})[^<>\[\]\s]{{0,42}}[>\]]{{1,2}}{_BLANKS}{_ROLE}"
    blank = rf"[ \t{INVISIBLE}]*"
    heading = rf"(?:[#\uff03]{blank})+(?:{any_of(TEMPLATE_HEADINGS)}):?"
    line = rf"(?m:^){blank}(?:{heading}|{any_of(TEMPLATE_LINES)}){blank}(?m:$)"
    mark = rf"(?:{_tag(names, end=True)}|{_tag(names, end=False)}|{control}|{line})"
    lead = re.compile(rf"{_BLANKS}{mark}{_BLANKS}\Z", re.IGNORECASE)
    return lead, re.compile(rf"(?:{_BLANKS}{mark})*", re.IGNORECASE)
