"""The engine's results, as the events that the HTTP side writes replies from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from serving.calls import Alternative, Call, Called, ChosenToken, Ended, Event, Failed, Text
from serving.engine import Engine, RequestError, Result, TokenLogprob
from serving.engine.types import ENGINE_FAILED
from serving.tools import ToolReader

log = logging.getLogger(__name__)


def merged(events: list[Event]) -> list[Event]:
    """The same answer in fewer events: texts of one choice that follow each other become one."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text) and event.choice == last.choice:
            joined[-1] = Text(event.choice, last.text + event.text, _joined(last.tokens, event.tokens))
        else:
            joined.append(event)
    return joined


def _joined(
    first: tuple[ChosenToken, ...] | None, second: tuple[ChosenToken, ...] | None
) -> tuple[ChosenToken, ...] | None:
    """Text that was held back comes without its tokens: they were shown before."""
    return None if first is None and second is None else (first or ()) + (second or ())


def with_calls(events: list[Event], readers: Sequence[ToolReader]) -> Iterator[Event]:
    """The same events, with tool calls read out of the text. A reader for each choice; none: no tools."""
    for event in events:
        if not readers or not isinstance(event, Text | Ended):
            yield event
        elif isinstance(event, Text):
            shown = readers[event.choice].push(event.text)
            if shown or event.tokens:
                yield event._replace(text=shown)
        else:
            rest, calls = readers[event.choice].finish()
            if rest:
                yield Text(event.choice, rest)
            if calls:
                yield Called(event.choice, calls)
            yield event._replace(finish_reason="tool_calls") if calls else event


def ending(call: Call, choice: int, engine: Engine, result: Result, *, with_text: bool) -> list[Event]:
    if result.finish_reason == "error":
        return [_failure(call, result)]
    if result.finish_reason == "timeout":
        return [Failed(504, "the request took longer than the server allows", "timeout")]
    if result.finish_reason == "cancelled":
        return [Failed(503, "the replica is shutting down: try again", "unavailable")]
    ended = Ended(choice, result.finish_reason, result.num_answer_tokens, result.num_cached_tokens)
    return [Text(choice, result.text, chosen(engine, result.logprobs)), ended] if with_text else [ended]


def _failure(call: Call, result: Result) -> Failed:
    """Some backends find out what is wrong with a request when they compute it."""
    code, said = result.error_code or ENGINE_FAILED, result.error or ""
    if code not in CLIENT_FAULTS:
        log.error("request %s: %s", result.id, said)
        return Failed(500, "the model failed on this request", code)
    log.info("request %s: %s", result.id, said)
    return Failed(400, _CANNOT if code == _UNSUPPORTED else said, code, _param(code, call))


def refusal(error: RequestError, call: Call) -> Failed:
    """The error names the parameter of this call that is at fault."""
    if error.code == "queue_full":
        return Failed(429, "too many requests are waiting: try again later", "overloaded")
    return Failed(400, str(error), error.code, _param(error.code, call))


def _param(code: str, call: Call) -> str | None:
    param = _PARAMS.get(code)
    if param == "messages" and call.messages is None:
        return "prompt"
    return "tools" if param == "response_format" and call.must_call else param


_UNSUPPORTED = "unsupported"
_CANNOT = "this engine cannot answer such a request"
"""Said of what a backend refuses in words of its own, which may name files of its source."""
_PARAMS = {
    "unsupported_parameter": "tools",
    "context_length_exceeded": "messages",
    "empty_prompt": "prompt",
    "bad_token": "prompt",
    "bad_sampling": "logit_bias",  # the rest is within its range by now
    "bad_messages": "messages",
    "invalid_text": "messages",
    "bad_json_schema": "response_format",
    "bad_grammar": "response_format",
}
CLIENT_FAULTS = frozenset({*_PARAMS, _UNSUPPORTED, "bad_request"})
"""Codes of answers that failed by what was asked, not by who was asked."""


def chosen(engine: Engine, logprobs: tuple[TokenLogprob, ...] | None) -> tuple[ChosenToken, ...] | None:
    if logprobs is None:
        return None
    return tuple(
        ChosenToken(
            _alternative(engine, each.token_id, each.logprob),
            tuple(_alternative(engine, token, logprob) for token, logprob in each.top.items()),
        )
        for each in logprobs
    )


def _alternative(engine: Engine, token: int, logprob: float) -> Alternative:
    data = engine.tokenizer.piece(token)
    return Alternative(data.decode("utf-8", "replace"), data, logprob)
