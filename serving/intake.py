"""From OpenAI's requests to calls: what is asked for, within the limits."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from serving.calls import Call
from serving.engine.types import Sampling
from serving.http.errors import ApiError
from serving.http.json_schema import check_schema
from serving.protocol import ChatRequest, CompletionRequest, GenerationRequest, ResponseFormat
from serving.settings import RequestLimits
from serving.tool_intake import forced_schema, tools_of, turn_of

RequestT = TypeVar("RequestT", bound=BaseModel)


def parse(kind: type[RequestT], body: dict[str, Any]) -> RequestT:
    """The request. Raises ApiError 400 naming the parameter, and quoting nothing of its value.

    A parameter that is not supported may be null: clients write so what they do not use.
    """
    asked = {name: value for name, value in body.items() if value is not None or name not in _UNSUPPORTED}
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        first = _most_telling(found)
        raise _api_error(first["type"], first["loc"], first["msg"]) from error


def _most_telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first; of a field that may be of several kinds, what is wrong within the likeliest of them."""
    first = errors[0]
    kind, field = first["loc"][-1], first["loc"][:-1]
    if not (first["type"].endswith("_type") and isinstance(kind, str) and kind in _UNION_TAGS):
        return first
    same = [each for each in errors if each["loc"][: len(field)] == field]
    return next((each for each in same if not each["type"].endswith("_type")), first)


def chat_call(request: ChatRequest, limits: RequestLimits, *, call_id: str, deadline_s: float) -> Call:
    """Raises ApiError 400 for more than the limits allow."""
    if len(request.messages) > limits.max_messages:
        raise _over("messages", limits.max_messages, _TOO_MANY)
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    tools = tools_of(request, limits)
    call_schema = forced_schema(request, tools, limits)
    answer_schema = _json_schema(request.response_format, limits)
    if tools and answer_schema:
        message = "response_format and tools exclude each other here"
        raise ApiError(400, message, param="response_format", code="unsupported_value")
    return Call(
        id=call_id,
        model=request.model,
        sampling=_sampling(
            request,
            limits,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            json_schema=call_schema or answer_schema,
        ),
        max_tokens=_max_tokens(*_asked_tokens(request), limits),
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
    """Raises ApiError 400 for more than the limits allow."""
    if request.best_of not in (None, request.n or 1):
        raise ApiError(
            400, "best_of other than n is not supported", param="best_of", code="unsupported_value"
        )
    if request.echo:
        raise ApiError(400, f"echo: {_UNSUPPORTED['echo']}", param="echo", code="unsupported_parameter")
    prompts = _prompts(request.prompt)
    return Call(
        id=call_id,
        model=request.model,
        sampling=_sampling(request, limits, top_logprobs=request.logprobs),
        max_tokens=_max_tokens(request.max_tokens or 16, "max_tokens", limits),
        prompts=prompts,
        num_choices=_num_choices(request.n or 1, len(prompts), limits),
        stream=bool(request.stream),
        user=request.user or "",
        deadline_s=deadline_s,
    )


_MIN_TOP_P = 1e-6
"""The likeliest token alone; OpenVINO refuses 0."""


def _sampling(
    request: GenerationRequest,
    limits: RequestLimits,
    *,
    top_logprobs: int | None,
    json_schema: str | None = None,
) -> Sampling:
    if top_logprobs is not None and top_logprobs > limits.max_top_logprobs:
        raise _over(
            "top_logprobs" if isinstance(request, ChatRequest) else "logprobs", limits.max_top_logprobs
        )
    if len(request.logit_bias or {}) > limits.max_logit_biases:
        raise _over("logit_bias", limits.max_logit_biases, _TOO_MANY)
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
    if len(stops) > limits.max_stops:
        raise _over("stop", limits.max_stops, _TOO_MANY)
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
        param = "n" if num_prompts <= limits.max_choices else "prompt"
        raise ApiError(
            400,
            f"at most {limits.max_choices} answers to one request",
            param=param,
            code="integer_above_max_value",
        )
    return n


def _asked_tokens(request: ChatRequest) -> tuple[int | None, str]:
    """How long the answer may be, and the parameter that says so; the older word is a synonym."""
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is not None and older not in (None, newer):
        message = "max_tokens and max_completion_tokens differ: give one of them"
        raise ApiError(400, message, param="max_tokens", code="invalid_parameter_combination")
    return (older, "max_tokens") if newer is None else (newer, "max_completion_tokens")


def _max_tokens(asked: int | None, param: str, limits: RequestLimits) -> int | None:
    cap = limits.max_answer_tokens
    if asked is not None and cap is not None and asked > cap:
        raise _over(param, cap)
    return asked if asked is not None else cap


def _json_schema(wanted: ResponseFormat | None, limits: RequestLimits) -> str | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return '{"type": "object"}'
    if wanted.json_schema is None:
        raise ApiError(
            400,
            "a json_schema is required",
            param="response_format.json_schema",
            code="missing_required_parameter",
        )
    return check_schema(wanted.json_schema.schema_, limits, "response_format.json_schema.schema")


_TOO_MANY = "array_above_max_length"


def _over(param: str, most: int, code: str = "integer_above_max_value") -> ApiError:
    what = "a length of " if code == _TOO_MANY else ""
    return ApiError(400, f"{param} must not exceed {what}{most}", param=param, code=code)


_CODES: Mapping[str, str] = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "string_too_long": "string_above_max_length",
    "too_long": _TOO_MANY,
    "too_short": "empty_array",
    **{f"{kind}_type": "invalid_type" for kind in ("string", "int", "float", "bool", "list", "dict")},
    "model_type": "invalid_type",
}
"""OpenAI's codes of what pydantic finds; the rest is `invalid_value`."""
_BOUNDS: Mapping[str, str] = {
    "greater_than": "below_min_value",
    "greater_than_equal": "below_min_value",
    "less_than": "above_max_value",
    "less_than_equal": "above_max_value",
}
_DECIMALS = frozenset(
    {"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "logit_bias"}
)

_UNION_TAGS = frozenset({"str", "int", "float", "bool", "NamedChoice"})

_UNSUPPORTED: Mapping[str, str] = {
    "functions": "functions are not supported",
    "function_call": "functions are not supported",
    "audio": "audio is not supported",
    "modalities": "only text is supported",
    "web_search_options": "web search is not supported",
    "reasoning_effort": "this model has no reasoning effort",
    "verbosity": "this model has no verbosity",
    "suffix": "a suffix is not supported",
    "echo": "echo is not supported",
    "grammar": "client grammars are not accepted: use response_format",
    "guided_regex": "client regexes are not accepted: use response_format",
    "guided_grammar": "client grammars are not accepted: use response_format",
    "chat_template": "client templates are not accepted",
    "chat_template_kwargs": "client template variables are not accepted",
}


def _api_error(kind: str, location: tuple[int | str, ...], message: str) -> ApiError:
    names = [str(part)[:64] for part in location if not (isinstance(part, str) and "[" in part)]
    if len(names) > 1 and names[-1] in _UNION_TAGS:  # which of a field's kinds the value is not
        names.pop()
    param = ".".join(names[:6]) or None
    if names and names[0] in _UNSUPPORTED:
        return ApiError(
            400, f"{names[0]}: {_UNSUPPORTED[names[0]]}", param=param, code="unsupported_parameter"
        )
    code = _CODES.get(kind, "invalid_value")
    if kind in _BOUNDS:
        code = f"{'decimal' if names[0] in _DECIMALS else 'integer'}_{_BOUNDS[kind]}"
    said = {"extra_forbidden": f"unknown parameter: {param}", "missing": f"missing parameter: {param}"}
    return ApiError(400, said.get(kind, f"{param}: {message}"), param=param, code=code)
