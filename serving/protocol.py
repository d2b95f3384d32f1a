"""OpenAI's requests, by allow-list: what is known is checked, what changes nothing is ignored, what would change the
answer and is not supported is refused by name. Reference: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.calls import Call
from serving.engine.types import Sampling
from serving.http.errors import ApiError
from serving.http.json_schema import check_schema
from serving.settings import RequestLimits

Ignored = Any
"""Accepted from OpenAI's clients; it does not change an answer."""

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenIds = list[Annotated[int, Field(ge=0, lt=2**31)]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


RequestT = TypeVar("RequestT", bound="_Request")


class TextPart(_Part):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Part):
    """One turn. `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None
    annotations: Ignored = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def as_turn(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Part):
    """`include_usage`: a last chunk with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class SchemaSpec(_Part):
    """OpenAI's wrapper of a JSON schema."""

    name: Annotated[str, Field(max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Part):
    """`text`, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaSpec | None = None


class _Request(_Part):
    """What both routes take."""

    model: Annotated[str, Field(max_length=256)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: str | TokenIds | list[str] | list[TokenIds]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None


def parse(kind: type[RequestT], body: dict[str, Any]) -> RequestT:
    """The request. Raises ApiError 400 naming the parameter, and quoting nothing of its value."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _api_error(first["type"], first["loc"], first["msg"]) from error


def chat_call(request: ChatRequest, limits: RequestLimits, *, call_id: str, deadline_s: float) -> Call:
    """Raises ApiError 400 for more than the limits allow."""
    if len(request.messages) > limits.max_messages:
        raise _over("messages", limits.max_messages)
    max_tokens = request.max_completion_tokens or request.max_tokens
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    return Call(
        id=call_id,
        model=request.model,
        sampling=_sampling(
            request,
            limits,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            json_schema=_json_schema(request.response_format, limits),
        ),
        max_tokens=_max_tokens(max_tokens, limits, "max_tokens"),
        messages=tuple(message.as_turn() for message in request.messages),
        num_choices=_num_choices(request.n or 1, 1, limits),
        stream=bool(request.stream),
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
    prompts = _prompts(request.prompt)
    return Call(
        id=call_id,
        model=request.model,
        sampling=_sampling(request, limits, top_logprobs=request.logprobs),
        max_tokens=_max_tokens(request.max_tokens or 16, limits, "max_tokens"),
        prompts=prompts,
        num_choices=_num_choices(request.n or 1, len(prompts), limits),
        stream=bool(request.stream),
        deadline_s=deadline_s,
    )


def _sampling(
    request: _Request, limits: RequestLimits, *, top_logprobs: int | None, json_schema: str | None = None
) -> Sampling:
    if top_logprobs is not None and top_logprobs > limits.max_top_logprobs:
        raise _over(
            "top_logprobs" if isinstance(request, ChatRequest) else "logprobs", limits.max_top_logprobs
        )
    if len(request.logit_bias or {}) > limits.max_logit_biases:
        raise _over("logit_bias", limits.max_logit_biases)
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
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
        raise _over("stop", limits.max_stops)
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


def _max_tokens(asked: int | None, limits: RequestLimits, param: str) -> int | None:
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


def _over(param: str, most: int) -> ApiError:
    return ApiError(400, f"{param} must not exceed {most}", param=param, code="integer_above_max_value")


_UNSUPPORTED: Mapping[str, str] = {
    "tools": "this model's chat template takes no tools",
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
    param = ".".join(names[:6]) or None
    if names and names[0] in _UNSUPPORTED:
        return ApiError(
            400, f"{names[0]}: {_UNSUPPORTED[names[0]]}", param=param, code="unsupported_parameter"
        )
    if kind == "extra_forbidden":
        return ApiError(400, f"unknown parameter: {param}", param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"missing parameter: {param}", param=param, code="missing_required_parameter")
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")
