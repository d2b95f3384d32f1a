"""Tool calls: whether a model's chat template teaches them, and how they are read out of its answers.

Two forms are known: `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes, Qwen 2.5 and 3), and
answers that are nothing but JSON (Llama 3.1 to 3.3 with `parameters`, Mistral with a list).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

ToolFormat = Literal["tags", "json"]

_OTHERS = ("<function=", "<arg_key>", "[ARGS]")
"""Marks of templates that write calls otherwise: Qwen3-Coder, GLM, Mistral from version 11 on."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAGGED = re.compile(rf"{_OPEN}(.*?)(?:{_CLOSE}|\Z)", re.DOTALL)


class ToolCall(NamedTuple):
    """A function that the model wants called."""

    id: str
    name: str
    arguments: str
    """A JSON object as text."""


def format_of(template: str) -> ToolFormat | None:
    """The form of tool calls that a chat template teaches; None if it teaches none that is known here."""
    if "tools" not in template or any(mark in template for mark in _OTHERS):
        return None
    if _OPEN in template:
        return "tags" if 'arguments"' in template or 'arguments\\"' in template else None
    is_llama = "ipython" in template and '"parameters"' in template
    return "json" if is_llama or "[AVAILABLE_TOOLS]" in template else None


class ToolReader:
    """Parts a streamed answer into text that is shown and calls that are not."""

    def __init__(self, form: ToolFormat, names: Collection[str], *, most: int | None = None) -> None:
        """A call of a function not in `names` stays text. `most`: calls after these are dropped."""
        self._form = form
        self._names = names
        self._most = most
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> str:
        """More of the answer; returns what can be shown now."""
        if self._is_text:
            return text
        self._held += text
        shown, self._held = self._part(self._held)
        return shown

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The answer has ended: the text that was held back in vain, or the calls."""
        held, self._held = self._held, ""
        calls = self._calls(held)
        return ("", calls) if calls else (held, ())

    def _part(self, held: str) -> tuple[str, str]:
        """What is text for certain, and what may be a call."""
        if self._form == "json":
            start = held.lstrip()[:1]
            self._is_text = bool(start) and start not in "{["
            return (held, "") if self._is_text else ("", held)
        at = held.find(_OPEN)
        if at < 0:
            at = len(held) - _overlap(held)
        return held[:at], held[at:]

    def _calls(self, held: str) -> tuple[ToolCall, ...]:
        parts = _TAGGED.findall(held) if self._form == "tags" else [held]
        try:
            rows = [row for part in parts for row in _rows(json.loads(part.strip()))]
            calls = tuple(_call(row, self._names) for row in rows)
        except (ValueError, RecursionError):  # no call, or half of one: what the model said is text
            return ()
        return calls[: self._most]


def _overlap(text: str) -> int:
    """Length of the longest proper start of a tag that ends `text`."""
    lengths = range(min(len(_OPEN) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(_OPEN[:length])), 0)


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _call(row: Any, names: Collection[str]) -> ToolCall:
    """Raises ValueError for anything that is no call of these functions."""
    name = row.get("name") if isinstance(row, dict) else None
    if not isinstance(name, str) or name not in names:
        raise ValueError("not a call")
    arguments = row.get("arguments", row.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("no arguments")
    text = json.dumps(arguments, ensure_ascii=False)
    text.encode()  # escapes can write half of a character, which no reply can carry: a ValueError
    # Mistral's template takes ids of nine letters and digits, and others take any.
    return ToolCall(f"c{secrets.token_hex(4)}", name, text)
