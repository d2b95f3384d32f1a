"""From OpenAI's requests to calls: what is asked for, within the limits."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from serving.calls import Call
from serving.engine.types import Sampling
from serving.http.errors import ApiError
from serving.http.json_schema import check_schema
from serving.lengths import over, too_many_choices
from serving.protocol import ChatRequest, CompletionRequest, ResponseFormat, SamplingRequest
from serving.settings import RequestLimits
from serving.tool_intake import choice_of, forced_schema, tools_of, turn_of


def chat_call(request: ChatRequest, limits: RequestLimits, *, call_id: str, deadline_s: float) -> Call:
    """Of lengths that were checked. Raises ApiError 400 for more than the limits allow."""
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    choice = choice_of(request.tool_choice)
    tools = tools_of(request.tools or (), choice, limits)
    call_schema = forced_schema(tools, choice, limits)
    answer_schema = _answer_schema(request.response_format, limits)
    refuse_both(tools, answer_schema, "response_format")
    return Call(
        id=call_id,
        model=request.model,
        sampling=sampling_of(
            request,
            limits,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            json_schema=call_schema or answer_schema,
        ),
        max_tokens=capped(*_asked_tokens(request), limits),
        messages=tuple(turn_of(index, each, limits) for index, each in enumerate(request.messages)),
        tools=tools,
        must_call=call_schema is not None,
        max_tool_calls=1 if request.parallel_tool_calls is False else None,
        num_choices=_num_choices(request.n or 1, 1, limits),
        stream=bool(request.stream),
        user=request.user or "",
        deadline_s=deadline_s,
    )


def completion_call(
    request: CompletionRequest, limits: RequestLimits, *, call_id: str, deadline_s: float
) -> Call:
    """Of lengths that were checked. Raises ApiError 400 for more than the limits allow."""
    if request.best_of not in (None, request.n or 1):
        raise ApiError(
            400, "best_of other than n is not supported", param="best_of", code="unsupported_value"
        )
    if request.max_tokens == 0 and not request.echo:
        raise ApiError(400, "max_tokens: 0 needs echo", param="max_tokens", code="integer_below_min_value")
    if request.echo and request.stream and request.logprobs is not None:
        message = "echo with logprobs is not streamed"
        raise ApiError(400, message, param="echo", code="unsupported_value")
    prompts = _prompts(request.prompt)
    return Call(
        id=call_id,
        model=request.model,
        sampling=sampling_of(request, limits, top_logprobs=request.logprobs),
        max_tokens=capped(16 if request.max_tokens is None else request.max_tokens, "max_tokens", limits),
        prompts=prompts,
        echo=bool(request.echo),
        num_choices=_num_choices(request.n or 1, len(prompts), limits),
        stream=bool(request.stream),
        user=request.user or "",
        deadline_s=deadline_s,
    )


_MIN_TOP_P = 1e-6
"""The likeliest token alone; OpenVINO refuses 0."""


def sampling_of(
    request: SamplingRequest,
    limits: RequestLimits,
    *,
    top_logprobs: int | None,
    json_schema: str | None = None,
) -> Sampling:
    """How each token is chosen. Raises ApiError 400 for more than the limits allow."""
    if top_logprobs is not None and top_logprobs > limits.max_top_logprobs:
        raise over(
            "logprobs" if isinstance(request, CompletionRequest) else "top_logprobs", limits.max_top_logprobs
        )
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else max(_MIN_TOP_P, request.top_p),
        top_k=request.top_k or 0,
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=(secrets.randbits(32) if request.seed is None else request.seed) % 2**32,
        stop=_stops(request.stop, limits),
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        top_logprobs=top_logprobs,
        json_schema=json_schema,
    )


def _stops(stop: str | list[str] | None, limits: RequestLimits) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not 0 < len(each) <= limits.max_stop_characters for each in stops):
        message = f"a stop string must have 1 to {limits.max_stop_characters} characters"
        raise ApiError(400, message, param="stop", code="invalid_value")
    return stops


def _prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise ApiError(400, "prompt is empty", param="prompt", code="invalid_value")
    if isinstance(prompt[0], int):
        return (tuple(prompt),)
    return tuple(each if isinstance(each, str) else tuple(each) for each in prompt)


def _num_choices(n: int, num_prompts: int, limits: RequestLimits) -> int:
    if n * num_prompts > limits.max_choices:
        raise too_many_choices("n", limits)
    return n


def _asked_tokens(request: ChatRequest) -> tuple[int | None, str]:
    """How long the answer may be, and the parameter that says so; the older word is a synonym."""
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is not None and older not in (None, newer):
        message = "max_tokens and max_completion_tokens differ: give one of them"
        raise ApiError(400, message, param="max_tokens", code="invalid_parameter_combination")
    return (older, "max_tokens") if newer is None else (newer, "max_completion_tokens")


def capped(asked: int | None, param: str, limits: RequestLimits) -> int | None:
    """How long an answer may be. Raises ApiError 400 above the cap, naming `param`."""
    cap = limits.max_answer_tokens
    if asked is not None and cap is not None and asked > cap:
        raise over(param, cap)
    return asked if asked is not None else cap


def _answer_schema(wanted: ResponseFormat | None, limits: RequestLimits) -> str | None:
    if wanted is None:
        return None
    if wanted.json_schema is None:
        return format_schema(wanted.type, None, limits, "response_format.json_schema")
    return format_schema(
        wanted.type, wanted.json_schema.schema_, limits, "response_format.json_schema.schema"
    )


def format_schema(
    kind: Literal["text", "json_object", "json_schema"],
    schema: dict[str, Any] | None,
    limits: RequestLimits,
    param: str,
) -> str | None:
    """What a wanted format holds the answer to, as JSON text; None: to nothing.

    `param`: where the schema stands, or should. Raises ApiError 400.
    """
    if kind == "text":
        return None
    if kind == "json_object":
        return '{"type": "object"}'
    if schema is None:
        raise ApiError(400, f"missing parameter: {param}", param=param, code="missing_required_parameter")
    return check_schema(schema, limits, param)


def refuse_both(tools: Sequence[Mapping[str, Any]], answer_schema: str | None, param: str) -> None:
    """Raises ApiError 400 for functions beside a format, which `param` asks for."""
    if tools and answer_schema:
        message = f"{param} and tools exclude each other here"
        raise ApiError(400, message, param=param, code="unsupported_value")
