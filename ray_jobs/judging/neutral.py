"""Text that is judged cannot talk to the judge in the judge's own format.

flow-judge puts inputs and answers into its prompt as they are, so an answer that holds `</output>` ends the
answer early and may go on as instructions or as a verdict. What would be read as part of the prompt's frame
is therefore made different by one character, and nothing else is touched:

- `<` of a tag that the frame itself uses (its inputs, output, rubric, feedback, score) becomes U+2039, a
  single left-pointing quotation mark;
- `#` of a heading that the frame itself uses becomes U+FF03, a full-width number sign.

One look-alike for one character keeps the text's length and what it says: a reader sees the tag that was
written, but it no longer is one. Escapes such as `&lt;` were not taken because judges read HTML escapes as
the tags they stand for; zero-width characters because tokenisers differ on them, and because the same trick
hides a tag from a filter. Other tags (`<div>`, `<input>`, `List<String>`) and headings stay as they are.

Control tokens (`<|im_end|>`) need nothing where this process makes the tokens: text is tokenised as text.
Where a server or another library does it, they are made different in the same way.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from ray_jobs.judging.presets import MetricOutline

TEMPLATE_TAGS = ("inputs", "output", "evaluation_criteria", "scoring_rubric", "feedback", "score")
"""The tags of flow-judge's prompt text and of its output format (flow_judge/utils/prompt_formatter.py)."""

TEMPLATE_HEADINGS = (
    "GOAL",
    "INPUT",
    "OUTPUT",
    "EVALUATION CRITERIA AND SCORING RUBRIC",
    "INSTRUCTIONS FOR THE EVALUATION",
    "FORMAT FOR THE EVALUATION",
)
"""The headings of flow-judge's prompt text, as they stand there."""

TEMPLATE_LINES = (
    "Below are the inputs required for performing the task:",
    "Below is the output of the task:",
    "Here are the evaluation criteria and the rubric that you need to use for evaluating the task:",
)
"""What stands in flow-judge's prompt text between a heading and its elements."""

INVISIBLE = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
OPEN = "[<\ufe64\uff1c]"
CLOSE = "[>\ufe65\uff1e]"
SAME_LINE = r"[^<>\ufe64\ufe65\uff1c\uff1e\r\n]"

CONTROL_TOKENS = re.compile(
    r"<(?=\|[^<>|\s]{1,40}\|>)"  # <|im_end|>, <|eot_id|>, <|end|>
    r"|<(?=/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn)>)"
    r"|\[(?=/?INST\])"
    r"|<(?=<?/?SYS>>)"
)
"""The first character of what the chat formats of common model families use to end a turn or begin one."""

_LOOK_ALIKES = {"<": "\u2039", "[": "\uff3b"}


class Neutraliser:
    """Makes text unable to end or imitate the frame of one metric's prompt.

    `control_tokens`: also those of chat formats, for judges whose tokens are made elsewhere.
    """

    def __init__(self, metric: MetricOutline, *, control_tokens: bool = False) -> None:
        self._tags = _tag_pattern(tuple(sorted({*TEMPLATE_TAGS, *metric.tags})))
        self._control_tokens = control_tokens

    def __call__(self, text: str) -> str:
        text = self._tags.sub("\u2039", text)
        text = _HEADINGS.sub(lambda match: match[1] + match[2].replace("#", "\uff03"), text)
        if self._control_tokens:
            text = CONTROL_TOKENS.sub(lambda match: _LOOK_ALIKES[match[0]], text)
        return text


@lru_cache(maxsize=64)
def _tag_pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    """The bracket that opens one of the tags: an end tag anyhow, a start tag if it is closed on its line.

    Letter case, full-width brackets, blanks and invisible characters inside make no difference to a judge, so
    they make none here.
    """
    names = "|".join(spread(tag) for tag in tags)
    gap = rf"[\s{INVISIBLE}]*"
    end_tag = rf"{gap}/{gap}(?:{names})(?![A-Za-z0-9_])"
    start_tag = rf"{gap}(?:{names})(?![A-Za-z0-9_]){SAME_LINE}{{0,80}}{CLOSE}"
    return re.compile(rf"{OPEN}(?={end_tag}|{start_tag})", re.IGNORECASE)


def spread(word: str) -> str:
    return f"[{INVISIBLE}]*".join(re.escape(letter) for letter in word)


def any_of(phrases: Iterable[str]) -> str:
    """A pattern for phrases, with any blanks between their words and invisible characters within."""
    return "|".join(r"[ \t]+".join(spread(word) for word in phrase.split()) for phrase in phrases)


def _heading_pattern(headings: Iterable[str]) -> re.Pattern[str]:
    blank = rf"[ \t{INVISIBLE}]*"
    names = any_of(headings)
    return re.compile(rf"^({blank})(#(?:{blank}#)*)(?={blank}(?:{names}){blank}:?[ \t\r]*$)", re.MULTILINE)


_HEADINGS = _heading_pattern(TEMPLATE_HEADINGS)
