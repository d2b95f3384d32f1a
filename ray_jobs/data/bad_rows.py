"""Why a row cannot be used, and what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_KEYS_SHOWN = 6

HINTS = {
    "bad_role": "roles are system (developer), user (human) and assistant (gpt, chatgpt, bing, bard, model)",
    "bad_turns": "an optional system turn is wanted, then user and assistant in turn, the user last",
    "empty_prompt": "name the prompt's column with `columns: {prompt: …}`",
    "has_tools": "rows that offer tools or call them are not supported",
    "messages_as_text": "a column of messages holds text; keep the list, as JSON lines or Parquet",
    "no_answer": "a chat without an answer is a prompt, and no pair",
    "no_preference": "the column holds none of the values that columns.winner names",
    "prompts_differ": "chosen and rejected share all turns but the last, and hold the turns of the prompt",
}
"""Reason -> what to do about it."""


class BadRow(Exception):
    """A row that cannot be used; `reason` is one word, `column` the column to look at, `hint` what to do."""

    def __init__(self, reason: str, column: str = "", found: str = "", hint: str = "") -> None:
        super().__init__(
            reason + (f" {found!r}" if found else "") + (f" (column {column!r})" if column else "")
        )
        self.reason = reason
        self.column = column
        self.hint = hint or HINTS.get(reason, "")


def not_text(value: Any, column: str, wanted: str) -> BadRow:
    """A value of another kind, with what it is and what is wanted in its place."""
    part = ""
    if isinstance(value, Mapping) and value:
        part = f"; name what is in it, as {column}.{next(iter(value))}"
    return BadRow("not_text", column, hint=f"it is {kind_of(value)}; wanted: {wanted}{part}")


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Mapping):
        names = [str(name) for name in value][:MAX_KEYS_SHOWN]
        return f"an object with {', '.join(names)}" if names else "an empty object"
    if isinstance(value, Sequence):
        return f"a list of {kind_of(value[0])}" if value else "an empty list"
    return f"a {type(value).__name__}"
