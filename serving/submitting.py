"""From a call to the engine's requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from serving.calls import Call
from serving.engine import Engine, Request, RequestError, Stream
from serving.tools import ToolReader, format_of


def submit_all(engine: Engine, call: Call) -> list[Stream]:
    """One request per prompt and choice, all or none. Raises RequestError or ModelMismatch."""
    prompts = list(prompts_of(engine, call))
    streams: list[Stream] = []
    try:
        for prompt in prompts:
            for index in range(call.num_choices):
                streams.append(engine.submit(_request(engine, call, prompt, index)))
    except BaseException:
        cancel_all(streams)
        raise
    return streams


def prompts_of(engine: Engine, call: Call) -> Iterator[tuple[int, ...]]:
    if call.messages is not None:
        _require_tools(engine, call)
        variables: dict[str, Any] = {"tools": list(call.tools)} if call.tools else {}
        yield engine.chat.render(call.messages, max_tokens=engine.context_tokens, **variables)
    for prompt in call.prompts:
        yield tuple(engine.tokenize(prompt, add_bos=True)) if isinstance(prompt, str) else prompt


def _require_tools(engine: Engine, call: Call) -> None:
    """Raises RequestError if the call needs a template that takes tools, and the model's does not."""
    speaks = any(turn["role"] == "tool" or "tool_calls" in turn for turn in call.messages or ())
    if (call.tools or speaks) and format_of(engine.chat.source) is None:
        message = "tools: this model's chat template takes no tools, or in a form that is not known here"
        raise RequestError("unsupported_parameter", message)


def readers_of(engine: Engine, call: Call) -> list[ToolReader]:
    """One for each choice; none without tools."""
    form = format_of(engine.chat.source) if call.tools else None
    if form is None:
        return []
    names = {tool["function"]["name"] for tool in call.tools}
    form = "json" if call.must_call else form
    return [ToolReader(form, names, most=call.max_tool_calls) for _ in range(call.num_choices)]


def _request(engine: Engine, call: Call, prompt: tuple[int, ...], index: int) -> Request:
    room = max(1, engine.context_tokens - len(prompt))
    sampling = replace(
        call.sampling,
        seed=(call.sampling.seed + index) % 2**32,
        max_tokens=room if call.max_tokens is None else max(1, min(call.max_tokens, room)),
    )
    return Request(
        f"{call.id}-{index}",
        prompt,
        sampling,
        deadline_s=call.deadline_s,
        scores_prompt=call.echo and sampling.top_logprobs is not None,
    )


def cancel_all(streams: list[Stream]) -> None:
    for stream in streams:
        stream.cancel()
