"""What the HTTP side asks of the engine side, and what comes back. Plain records: they cross processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from serving.engine.types import FinishReason, Sampling
from serving.tools import ToolCall


@dataclass(frozen=True, slots=True)
class Call:
    """One request, checked. Has `messages` or `prompts`; each is answered `num_choices` times."""

    id: str
    model: str | None
    """A name out of `models()`; None: the champion."""
    sampling: Sampling
    """Without `max_tokens`; choice i samples with seed + i."""
    max_tokens: int | None
    """None: as many as the context holds; 0: the prompt alone is wanted, for its `echo`."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the model may call, as chat templates take it."""
    must_call: bool = False
    """The sampling's JSON schema is that of a call."""
    max_tool_calls: int | None = None
    echo: bool = False
    """Each prompt comes back before its answers, with log-probabilities where the sampling has them."""
    num_choices: int = 1
    stream: bool = False
    user: str = ""
    """Who asks, as the client says; for stickiness alone."""
    deadline_s: float = 300.0


class Alternative(NamedTuple):
    """A token: its bytes, and its text, where bytes that are no whole character are U+FFFD."""

    text: str
    data: bytes
    logprob: float | None
    """None: of a prompt's first token, before which there is nothing."""


class ChosenToken(NamedTuple):
    """A token of the answer, and the likeliest ones in its place."""

    token: Alternative
    top: tuple[Alternative, ...]


class Started(NamedTuple):
    """First event of a call that is being answered."""

    model: str
    sha256: str
    num_prompt_tokens: int


class Text(NamedTuple):
    """More of a choice."""

    choice: int
    text: str
    tokens: tuple[ChosenToken, ...] | None = None


class Called(NamedTuple):
    """A choice wants functions called."""

    choice: int
    calls: tuple[ToolCall, ...]


class Ended(NamedTuple):
    """A choice is complete."""

    choice: int
    finish_reason: FinishReason | Literal["tool_calls"]
    num_answer_tokens: int
    num_cached_tokens: int


class Failed(NamedTuple):
    """The call is over, without an answer or with a part of one. Fields as in `ApiError`."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None


Event = Started | Text | Called | Ended | Failed


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that can be asked for by name."""

    name: str
    sha256: str
    run: str
    created: int
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether requests are answered. `ready` means that the model has generated."""

    ready: bool
    model_sha256: str | None
    detail: str


class Unavailable(Exception):
    """The engine side says nothing now, and did not before."""


class Backend(Protocol):
    """What answers calls: an engine host in this process, or Serve replicas."""

    def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        """Batches of events; the first begins with Started or Failed. Closing the iterator cancels."""

    async def models(self) -> list[ModelCard]:
        """Raises Unavailable."""

    async def health(self) -> Health: ...

    async def metrics(self) -> str:
        """Prometheus text."""
