"""The right answer in another form, or with words around it."""

import re

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs.mistakes import parts_of

_MARKS = (
    '"{}"', "'{}'", "`{}`", "**{}**", "{}.", "{}!", "({})", "[{}]", "- {}", "1. {}", "```\n{}\n```", "= {}",
    "{},", "> {}", "# {}", "<{}>", "{};", "* {}", "_{}_", "$ {}", "Answer: {}", "A: {}", "{} .", "-> {}",
)  # fmt: skip
_JOINTS = (", ", ",", "; ", " ", "\n", " | ", " and ", " - ", "\n- ", "\n* ", " / ")
_OPENINGS = (
    "Okay, ", "Certainly. ", "Happy to help! ", "Let me see. ", "Good question. ", "All right: ", "Well, ",
    "As requested, ", "Looking at your question, ", "After some thought, ", "Working it out step by step, ",
    "Absolutely! ", "No problem. ", "Based on what you wrote, ", "", "", "", "",
)  # fmt: skip
_BODIES = (
    "it is {a}", "that would be {a}", "{a} is what you want", "my {w} is {a}", "you get {a}", "I get {a}",
    "the {w} should be {a}", "this gives {a}", "the {w} comes out as {a}", "I would say {a}",
    "the {w} reads:\n{a}", "below is the {w}.\n\n{a}", "your {w}:\n{a}", "result -> {a}", "we have {a} here",
    "the {w} you need is {a}", 'one writes "{a}"', "the {w} = {a}", "take {a}", "{a} (this is the {w})",
    "{a}, as one can check", "{w}: {a}", "the final {w} is therefore {a}", "your request results in {a}",
)  # fmt: skip
_CLOSINGS = (
    "", "", "", "", ".", ".", "!", ". Anything else?", "\n\nJust ask if something is unclear.",
    ". I checked it twice.", "\n\nHave a nice day!", ". That is all.",
    "\n\nExplanation: this follows from the question.",
    ". Feel free to send more.", "\n\nNote that other ways to write it exist.", ". Glad I could assist you.",
    "\n\nThis is because the question asks for it.", ". It was easy to find.",
)  # fmt: skip


def other_form(draws: Draws, right: str) -> str:
    """The same in other case, marks, spacing or separators."""
    kind = draws.integer(0, 9)
    if kind < 3:
        return draws.pick((right.upper(), right.lower(), right.title(), right.capitalize(), right.swapcase()))
    parts, separator = parts_of(right)
    if kind < 6 and len(parts) > 1:
        return _joined(draws, parts, separator)
    if kind == 6 and len(right) > 1:
        return draws.pick((re.sub(r"\s+", "  ", f" {right}"), re.sub(r"\s", "", right), " ".join(right)))
    marked = draws.pick(_MARKS).format(right)
    return draws.pick(_MARKS).format(marked) if draws.chance(0.15) else marked


def _joined(draws: Draws, parts: list[str], separator: str) -> str:
    kind = draws.integer(0, 5)
    if kind == 0:
        return "\n".join(f"{at}. {part}" for at, part in enumerate(parts, start=1))
    if kind == 1:
        return "\n".join(f"- {part}" for part in parts)
    return draws.pick([joint for joint in _JOINTS if joint != separator]).join(parts)


def wordy(draws: Draws, what: str, answer: str) -> str:
    """`answer` with words before it, after it, or both."""
    opening, body, closing = draws.pick(_OPENINGS), draws.pick(_BODIES), draws.pick(_CLOSINGS)
    if draws.chance(0.15):
        return (
            f"{answer}{closing or ' is the ' + what}" if closing not in (".", "!") else f"{answer} - {what}"
        )
    text = opening + body.format(a=answer, w=what) + closing
    return text[0].upper() + text[1:] if draws.chance(0.8) else text
