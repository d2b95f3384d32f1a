"""What a text must be before a model is trained on it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.data.bad_rows import BadRow

MAX_ROW_CHARACTERS = 1_000_000

_WRITTEN_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
"""Messages that became text on their way, as tables without nested values have them."""
_TOOLS = ("tools", "functions")


def check_text(text: str, reason_if_empty: str) -> None:
    """Raises BadRow for a text that is empty, where a reason is given, or that no file can hold."""
    if reason_if_empty and not text.strip():
        raise BadRow(reason_if_empty)
    if "\0" in text:
        raise BadRow("nul")
    check_encodes(text)


def check_encodes(text: str, column: str = "") -> None:
    """Half of a UTF-16 pair can be written to no file."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("lone_surrogate", column) from error


def writable(text: str) -> str:
    """The text with a question mark for each lone half of a UTF-16 pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_written_messages(text: str) -> bool:
    return _WRITTEN_MESSAGES.match(text) is not None


def check_no_written_messages(text: str, column: str) -> None:
    """A list of messages in the form of text is no answer that a model should learn to write."""
    if is_written_messages(text):
        raise BadRow("messages_as_text", column)


def check_no_tools(row: Mapping[str, Any]) -> None:
    """A prompt that offers tools is another prompt without them."""
    for name in _TOOLS:
        if holds_tools(row.get(name)):
            raise BadRow("has_tools", name)


def holds_tools(value: Any) -> bool:
    """Whether a list or an object has anything in it, also as text; tables fill up with nulls."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    if isinstance(value, Mapping):
        return any(item is not None for item in value.values())
    return isinstance(value, list) and bool(value)


def check_size(row: Mapping[str, Any]) -> None:
    if characters(row) > MAX_ROW_CHARACTERS:
        raise BadRow("too_large")


def characters(value: Any) -> int:
    """Characters of all the text inside a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(characters(item) for item in value.values())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return sum(characters(item) for item in value)
    return 0
