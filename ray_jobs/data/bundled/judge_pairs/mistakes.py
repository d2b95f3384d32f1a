"""Answers that are nearly right, partly right or wrong."""

from collections.abc import Callable

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs.task import JudgedTask
from ray_jobs.data.bundled.judge_pairs.words import made_up, sentence, word

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SEPARATORS = ("\n", ", ", " / ", " | ", " ", "-", ",")
_REFUSALS = (
    "I cannot do that.",
    "I'm sorry, but I can't help with this.",
    "As an AI model I have no way to know.",
    "I don't know.",
    "This question cannot be answered.",
    "Could you give me more details?",
    "I am not able to answer.",
    "Sorry, I need more context first.",
    "N/A",
    "Unknown",
    "...",
    "Yes.",
    "No",
    "Of course!",
    "What would you like to know?",
    "Thank you for your question.",
)


def near_miss(draws: Draws, task: JudgedTask) -> str:
    """One thing of the right answer is wrong."""
    if task.near and draws.chance(0.35):
        return draws.pick(task.near)
    return draws.pick(_SLIPS)(draws, task.right)


def partial(draws: Draws, task: JudgedTask) -> str:
    """Part of the right answer is missing, or something else stands beside it."""
    parts, separator = parts_of(task.right)
    kind = draws.integer(0, 5)
    if kind < 3 and len(parts) > 2:
        at = draws.integer(0, len(parts) - 1)
        return separator.join([*parts[:at], *parts[at + 1 :]])
    other = draws.pick(task.near) if task.near and draws.chance(0.5) else _slip(draws, task.right)
    if kind == 3 and len(parts) > 2:
        return separator.join([*parts, word(draws)])
    both = draws.sample((task.right, other), 2)
    return draws.pick(("{} or {}", "Either {} or {}.", "{}\n{}", "{}, maybe {}", "{} ({})")).format(*both)


def wrong(draws: Draws, task: JudgedTask, other: JudgedTask) -> str:
    """Nothing of it is right; `other` is another task."""
    kind = draws.integer(0, 9)
    if kind < 4:
        return other.right
    if kind < 6:
        return draws.pick(_REFUSALS)
    if kind == 6:
        return task.query
    if kind == 7:
        return ""
    return draws.pick((other.query, word(draws), sentence(draws), str(draws.integer(0, 999)), task.what))


def parts_of(text: str) -> tuple[list[str], str]:
    separator = next((mark for mark in _SEPARATORS if mark in text), "")
    return (text.split(separator), separator) if separator else ([text], "")


def _other_letter(draws: Draws, text: str) -> str:
    at = draws.integer(0, len(text) - 1)
    old = text[at]
    new = str((int(old) + draws.integer(1, 9)) % 10) if old.isdecimal() else draws.pick(_LETTERS)
    return text[:at] + (new.upper() if old.isupper() else new) + text[at + 1 :]


def _letter_left_out(draws: Draws, text: str) -> str:
    at = draws.integer(0, len(text) - 1)
    return text[:at] + text[at + 1 :]


def _letter_more(draws: Draws, text: str) -> str:
    at = draws.integer(0, len(text))
    new = str(draws.integer(0, 9)) if text[max(0, at - 1)].isdecimal() else draws.pick(_LETTERS)
    return text[:at] + new + text[at:]


def _letters_swapped(draws: Draws, text: str) -> str:
    at = draws.integer(0, max(0, len(text) - 2))
    return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]


def _parts_swapped(draws: Draws, text: str) -> str:
    parts, separator = parts_of(text)
    if len(parts) < 2:
        return _other_letter(draws, text)
    a, b = sorted(draws.sample(range(len(parts)), 2))
    parts[a], parts[b] = parts[b], parts[a]
    return separator.join(parts)


def _other_part(draws: Draws, text: str) -> str:
    parts, separator = parts_of(text)
    at = draws.integer(0, len(parts) - 1)
    old = parts[at]
    if old.isdecimal():
        parts[at] = str(max(0, int(old) + draws.pick((-10, -2, -1, 1, 2, 10, 100))))
    else:
        parts[at] = made_up(draws) if draws.chance(0.3) else word(draws)
    return separator.join(parts)


def _end_missing(draws: Draws, text: str) -> str:
    return text[: max(1, len(text) - draws.integer(1, max(1, len(text) // 3)))]


_SLIPS: tuple[Callable[[Draws, str], str], ...] = (
    _other_letter,
    _letter_left_out,
    _letter_more,
    _letters_swapped,
    _parts_swapped,
    _other_part,
    _other_part,
    _end_missing,
)


def _slip(draws: Draws, text: str) -> str:
    return draws.pick(_SLIPS)(draws, text)
