"""The typed rows that stages hand to each other.

A driver may hold hundreds of thousands: they have slots, and texts that many have in common are one string.
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair: two answers to one prompt, the first preferred."""

    id: str
    source: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """An evaluation prompt: all turns before the answer; `reference` is the data set's own answer, if any."""

    id: str
    source: str
    messages: tuple[Message, ...]
    reference: str | None = None

    @property
    def sha256(self) -> str:
        return prompt_sha256(self.messages)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that is not used, with the reason (`empty_chosen`, `identical`, `too_long`, …)."""

    row: int
    reason: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered; `answer` is null exactly when `error` says why."""

    id: str
    source: str
    prompt_sha256: str
    model_sha256: str
    answer: str | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_answer_tokens: int
    finish_reason: str
    seconds: float
    error: str | None = None
    backend: str | None = None
    """The engine's; one for all models of a run."""

    COLUMNS: ClassVar[dict[str, str]] = {
        "id": "string",
        "source": "string",
        "prompt_sha256": "string",
        "model_sha256": "string",
        "answer": "string",
        "num_prompt_tokens": "int64",
        "num_cached_tokens": "int64",
        "num_answer_tokens": "int64",
        "finish_reason": "string",
        "seconds": "double",
        "error": "string",
        "backend": "string",
    }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        return cls(**_values(row, [field.name for field in fields(cls) if field.name in row]))


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's word on one answer by one metric; `score` is null exactly when `failure` says why.

    `expected_score` is the mean of the rubric's scores under the judge's token probabilities at the
    score position: finer than the integer, in the rubric's units. Where the judge came to no word, `feedback`
    says why, if that is known.
    """

    id: str
    metric: str
    score: int | None
    expected_score: float | None
    feedback: str | None
    failure: str | None
    answer_sha256: str
    judge_sha256: str
    seconds: float

    COLUMNS: ClassVar[dict[str, str]] = {
        "id": "string",
        "metric": "string",
        "score": "int64",
        "expected_score": "double",
        "feedback": "string",
        "failure": "string",
        "answer_sha256": "string",
        "judge_sha256": "string",
        "seconds": "double",
    }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        return cls(**_values(row, [field.name for field in fields(cls)]))


COMMON = frozenset(
    {"source", "model_sha256", "finish_reason", "backend", "metric", "failure", "judge_sha256"}
)
"""Columns in which many rows have the same text."""


def _values(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: _one(row[name]) if name in COMMON else row[name] for name in names}


def _one(text: str | None) -> str | None:
    return None if text is None else sys.intern(text)


def as_row(record: Answer | Judgement | Pair | Prompt) -> dict[str, Any]:
    """The record as plain lists, dicts and scalars, one key a column."""
    return asdict(record)


def messages_from(rows: Iterable[Mapping[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=sys.intern(row["role"]), content=row["content"]) for row in rows)


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    return Pair(
        row["id"], sys.intern(row["source"]), messages_from(row["prompt"]), row["chosen"], row["rejected"]
    )


def prompt_from_row(row: Mapping[str, Any]) -> Prompt:
    return Prompt(row["id"], sys.intern(row["source"]), messages_from(row["messages"]), row["reference"])


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def prompt_sha256(messages: Iterable[Message]) -> str:
    """Hash of roles and contents, with lengths in between so that no two conversations collide."""
    digest = hashlib.sha256()
    for message in messages:
        for part in (message.role, message.content):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def row_seed(run_seed: int, row_id: str) -> int:
    """A seed in [0, 2**31) that depends on the run and the row alone, not on order or placement."""
    digest = hashlib.sha256(f"{run_seed}:{row_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1
