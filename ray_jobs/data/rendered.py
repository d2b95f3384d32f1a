"""Texts that went through a chat template, or are lists in the form of text: no model should learn these.

A row or two may well be about such a thing; many of them were made by it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from ray_jobs.records import Pair, Prompt

MAX_SHARE = 0.1
"""Share of rows that may hold a marker."""
MAX_ROWS = 2
"""Rows that may hold one in a small data set, unless all do."""

_MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
    "<extra_id_1>",
    "### Instruction:",
    "### Response:",
    "### Human:",
    "### Assistant:",
)
_SIGNS = ("<|", "INST]", "<<SYS", "_of_turn>", "<\uff5c", "<extra_id", "### ")
"""Each marker has one of these, for which a text is looked through sooner."""
_AT_END = ("</s>", "\nASSISTANT:", " ASSISTANT:")
"""Markers that are such at a text's end alone."""


@dataclass
class Rendered:
    """Counts rows of one kind of text; `first` says where the first is and what it holds."""

    count: int = 0
    first: str = ""

    def add(self, found: str | None, place: str) -> None:
        if found is not None:
            self.count += 1
            self.first = self.first or f"{place}: {found}"

    def is_too_much(self, num_rows: int) -> bool:
        return self.count > MAX_SHARE * num_rows and (self.count > MAX_ROWS or self.count == num_rows)


def template_marker(row: Pair | Prompt) -> str | None:
    """The first marker of a chat template in a row, and where it stands."""
    for name, text in _texts(row):
        found = _first_marker(text)
        if found is None and (end := text[-20:].rstrip()).endswith(_AT_END):
            found = next(marker for marker in _AT_END if end.endswith(marker))
        if found is not None:
            return f"{found.strip()!r} in the {name}"
    return None


def _first_marker(text: str) -> str | None:
    if not any(sign in text for sign in _SIGNS):
        return None
    return next((marker for marker in _MARKERS if marker in text), None)


def written_list(row: Pair | Prompt) -> str | None:
    """The beginning of a prompt that is a list of texts in the form of text."""
    turns = row.prompt if isinstance(row, Pair) else row.messages
    text = turns[-1].content.strip()
    if not (text.startswith('["') and text.endswith('"]')):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return f"{text[:40]!r}" if all(isinstance(item, str) for item in items) else None


def _texts(row: Pair | Prompt) -> Iterator[tuple[str, str]]:
    for turn in row.prompt if isinstance(row, Pair) else row.messages:
        yield "prompt", turn.content
    if isinstance(row, Pair):
        yield from (("chosen answer", row.chosen), ("rejected answer", row.rejected))
    elif row.reference is not None:
        yield "reference", row.reference
