"""Which column of a row holds what: by the config's names, else by the usual ones."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.data.settings import Columns
from ray_jobs.data.turns import is_messages

PROMPTS = ("prompt", "instruction", "question")
CONVERSATIONS = ("conversations", "messages")
SYSTEMS = ("system", "system_prompt")
ABSENT: Any = object()
"""What a column that a row does not have holds."""


def find(row: Mapping[str, Any], name: str) -> Any:
    """What a column holds, or what stands inside of one (`input.messages`, `answers.0.text`); else ABSENT."""
    if name in row or "." not in name:
        return row.get(name, ABSENT)
    value: Any = row
    for key in name.split("."):
        value = _inside(value, key)
    return value


def _inside(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key, ABSENT)
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if is_list and re.fullmatch(r"-?[0-9]{1,6}", key) and -len(value) <= int(key) < len(value):
        return value[int(key)]
    return ABSENT


def has(row: Mapping[str, Any], name: str) -> bool:
    return find(row, name) is not ABSENT


def cell(row: Mapping[str, Any], name: str) -> Any:
    """What a column holds; None also where there is none."""
    value = find(row, name)
    return None if value is ABSENT else value


def top_column(row: Mapping[str, Any], name: str) -> str:
    """The row's own column that a name stands for, or leads into."""
    return name if name in row else name.partition(".")[0]


def prompt_column(row: Mapping[str, Any], columns: Columns) -> str:
    """The configured column, or the first usual one that the row has."""
    return columns.prompt or next((name for name in PROMPTS if name in row), "prompt")


def chosen_column(columns: Columns) -> str:
    return columns.chosen or "chosen"


def rejected_column(columns: Columns) -> str:
    return columns.rejected or "rejected"


def source_of(row: Mapping[str, Any], columns: Columns) -> str:
    """The value of the source column, or nothing where that is no text."""
    value = cell(row, columns.source or "source")
    return value if isinstance(value, str) else ""


@dataclass
class Cells:
    """The cells of a row; remembers of which columns something was used, and for what."""

    row: Mapping[str, Any]
    columns: Columns
    used: dict[str, str] = field(default_factory=dict)

    def use(self, name: str, purpose: str) -> Any:
        """What a column holds, which is used from now on if it holds anything."""
        value = cell(self.row, name)
        if value is not None:
            self.used[top_column(self.row, name)] = purpose
        return value

    @property
    def prompt_name(self) -> str:
        return prompt_column(self.row, self.columns)

    def prompt(self) -> Any:
        """The value of the prompt's column, with the text that belongs to it."""
        name = self.prompt_name
        extra = self.columns.input or ("input" if name == "instruction" else None)
        value = self.use(name, "prompt")
        more = cell(self.row, extra) if extra is not None else None
        if extra is not None and isinstance(value, str) and isinstance(more, str) and more.strip():
            return f"{value}\n\n{self.use(extra, 'input')}"
        return value

    def system(self) -> str | None:
        """The text of the system column, if it has any."""
        usual = next((name for name in SYSTEMS if name in self.row), SYSTEMS[0])
        name = self.columns.system or usual
        text = cell(self.row, name)
        return self.use(name, "system") if isinstance(text, str) and text.strip() else None


_OF_PROMPTS = frozenset({
    "prompt", "prompts", "question", "questions", "instruction", "instructions", "query", "input",
    "context", "user", "text", "problem", "utterance", "history", "message", "messages", "conversation",
    "conversations", "dialog", "dialogue", "ask", "request", "post", "task", "title",
})  # fmt: skip
"""Words in the names of columns that may hold the prompt, whatever stands in them."""
_OF_OTHERS = frozenset({
    "id", "ids", "idx", "index", "uid", "uuid", "guid", "key", "hash", "md5", "sha", "sha1", "sha256",
    "url", "uri", "link", "href", "path", "file", "filename", "source", "sources", "dataset", "datasets",
    "origin", "subset", "split", "config", "system", "label", "labels", "kind", "type", "category",
    "categories", "tag", "tags", "lang", "language", "locale", "model", "models", "generator", "annotator",
    "annotators", "annotation", "annotations", "worker", "author", "score", "scores", "rating", "ratings",
    "rank", "reward", "margin", "winner", "preference", "better", "safer", "status", "chosen", "rejected",
    "answer", "answers", "response", "responses", "reply", "output", "outputs", "completion", "completions",
    "generation", "generations", "reference", "solution", "explanation", "rationale", "reason", "reasons",
    "feedback", "critique", "comment", "comments", "note", "notes", "metadata", "meta", "info", "date",
    "time", "timestamp", "created", "updated", "version", "license", "domain", "topic", "statement",
    "tools", "functions",
})  # fmt: skip
"""Words in the names of columns that hold something else."""


def may_hold_prompt(row: Mapping[str, Any], taken: Collection[str]) -> str | None:
    """The column, of those that are not taken, that most likely holds the prompt; None where none may."""
    found = [name for name, value in row.items() if name not in taken and _may_be_prompt(name, value)]
    likely = [name for name in found if _words(name) & _OF_PROMPTS]
    return next(iter(likely or found), None)


def _may_be_prompt(name: str, value: Any) -> bool:
    """Whether a column holds messages, or text that is neither a number nor, as it seems, a label."""
    words = _words(name)
    if words & _OF_OTHERS:
        return False
    if not isinstance(value, str):
        return is_messages(value)
    text = value.strip()
    if not text or _is_number(text):
        return False
    return bool(words & _OF_PROMPTS) or len(text.split()) > 1 or not text.isascii()


def _words(name: str) -> set[str]:
    """The words of a column's name, in small letters: `preferredAnswer_2` has preferred, answer and 2."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def taken_columns(row: Mapping[str, Any], columns: Columns) -> set[str]:
    """The columns that are known to hold something else than the prompt."""
    usual = {chosen_column(columns), rejected_column(columns), columns.source or "source", "id", *SYSTEMS}
    named = {name for of, name in columns.named().items() if of != "prompt"}
    return {top_column(row, name) for name in usual | named}
