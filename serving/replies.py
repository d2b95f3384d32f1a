"""OpenAI's replies, out of events. Built as plain dicts: they are written once per token."""

from __future__ import annotations

import codecs
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from serving.calls import Alternative, Call, Called, ChosenToken, Ended, Event, ModelCard, Started, Text
from serving.http.errors import ApiError
from serving.http.event_stream import DONE
from serving.tools import ToolCall

Route = Literal["chat", "completion"]


@dataclass(kw_only=True)
class Answer:
    """What is known of a call's answer so far, whatever its form."""

    call: Call
    created: int = field(default_factory=lambda: int(time.time()))
    model: str = ""
    sha256: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_answer_tokens: int = 0

    def see(self, event: Event) -> None:
        """Keep what the usage and the head are made of."""
        if isinstance(event, Started):
            self.model, self.sha256, self.num_prompt_tokens = event
        elif isinstance(event, Ended):
            self.num_answer_tokens += event.num_answer_tokens
            self.num_cached_tokens += (
                event.num_cached_tokens if event.choice % self.call.num_choices == 0 else 0
            )


@dataclass(kw_only=True)
class Reply(Answer):
    """A reply with choices, and how each part of it is written."""

    route: Route
    with_usage: bool = False
    """The stream ends with the token counts; its other chunks then say that they have none."""
    end: ClassVar[bytes] = DONE
    _num_characters: Counter[int] = field(default_factory=Counter)
    """Streamed so far, per choice: logprobs of completions say where in the text a token is."""

    def param(self, name: str | None) -> str | None:
        """The request's word for a parameter of the call: they are the same."""
        return name

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_answer_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_answer_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }

    def whole(self, events: Iterable[Event]) -> dict[str, Any]:
        """The reply to a request that did not stream."""
        texts: dict[int, Text] = {}
        calls: dict[int, tuple[ToolCall, ...]] = {}
        choices = []
        for event in events:
            if isinstance(event, Text):
                texts[event.choice] = event
            elif isinstance(event, Called):
                calls[event.choice] = event.calls
            elif isinstance(event, Ended):
                choices.append(self._choice(event, texts.get(event.choice), calls.get(event.choice, ())))
        kind = "chat.completion" if self.route == "chat" else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage}

    def opening(self) -> list[dict[str, Any]]:
        """Chat streams begin with a role for every choice."""
        if self.route == "completion":
            return []
        return [
            self._chunk(choice, {"role": "assistant", "content": ""}, None, None)
            for choice in range(self.call.num_choices)
        ]

    def parts(self, event: Event) -> list[dict[str, Any]]:
        """The stream's chunks for an event."""
        if isinstance(event, Called):
            calls = [{"index": index, **_tool_call(call)} for index, call in enumerate(event.calls)]
            return [self._chunk(event.choice, {"tool_calls": calls}, None, None)]
        if isinstance(event, Ended):
            return [self._chunk(event.choice, {}, None, event.finish_reason)]
        if isinstance(event, Text):
            return [self._chunk(event.choice, {"content": event.text}, event.tokens, None)]
        return []

    def closing(self) -> list[dict[str, Any]]:
        """The token counts, where the client wants them."""
        usage = {**self._head(self._chunk_kind), "choices": [], "usage": self.usage}
        return [usage] if self.with_usage else []

    def broken(self, error: ApiError) -> list[dict[str, Any]]:
        """The end of a stream that cannot be ended."""
        return [error.body]

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.route == "chat" else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint(self.sha256),
        }

    def _choice(self, ended: Ended, text: Text | None, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
        text = text or Text(ended.choice, "")
        common = {"index": ended.choice, "finish_reason": ended.finish_reason}
        if self.route == "completion":
            return {**common, "text": text.text, "logprobs": _completion_logprobs(text.tokens)}
        message: dict[str, Any] = {"role": "assistant", "content": text.text, "refusal": None}
        if calls:
            said = text.text if text.text.strip() else None
            message |= {"content": said, "tool_calls": [_tool_call(call) for call in calls]}
        return {**common, "message": message, "logprobs": _chat_logprobs(text.tokens)}

    def _chunk(
        self, choice: int, delta: dict[str, Any], tokens: tuple[ChosenToken, ...] | None, reason: str | None
    ) -> dict[str, Any]:
        common = {"index": choice, "finish_reason": reason}
        if self.route == "completion":
            text, at = delta.get("content", ""), self._num_characters[choice]
            self._num_characters[choice] += len(text)
            one = {**common, "text": text, "logprobs": _completion_logprobs(tokens, at)}
        else:
            one = {**common, "delta": delta, "logprobs": _chat_logprobs(tokens)}
        chunk = {**self._head(self._chunk_kind), "choices": [one]}
        return {**chunk, "usage": None} if self.with_usage else chunk


def fingerprint(sha256: str) -> str:
    """Names the model that wrote a reply."""
    return f"sha256:{sha256}"


def model_list(cards: Iterable[ModelCard]) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(card) for card in cards]}


def model_object(card: ModelCard) -> dict[str, Any]:
    """OpenAI's model object, with the run and the hash beside it."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": card.run,
        "run": card.run,
        "sha256": card.sha256,
    }


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _chat_logprobs(tokens: tuple[ChosenToken, ...] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {"content": logprobs_of(tokens), "refusal": None}


def logprobs_of(tokens: Iterable[ChosenToken]) -> list[dict[str, Any]]:
    """Tokens with their probabilities, and with the likeliest ones in their place."""
    return [{**_entry(each.token), "top_logprobs": [_entry(other) for other in each.top]} for each in tokens]


def _entry(token: Alternative) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": list(token.data),
    }


def _completion_logprobs(tokens: tuple[ChosenToken, ...] | None, at: int = 0) -> dict[str, Any] | None:
    """`at`: characters of the choice that came before these tokens."""
    if tokens is None:
        return None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    for each in tokens:
        offsets.append(at)
        at += len(decoder.decode(each.token.data))
    return {
        "tokens": [_name(each.token) for each in tokens],
        "token_logprobs": [each.token.logprob for each in tokens],
        "top_logprobs": [
            None if each.token.logprob is None else {_name(other): other.logprob for other in each.top}
            for each in tokens
        ],
        "text_offset": offsets,
    }


def _name(token: Alternative) -> str:
    """Completions have no field for bytes: a part of a character is spelt, or many would look alike."""
    if "\ufffd" not in token.text:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)
