"""OpenAI's requests, by allow-list.

What is known is checked, what changes nothing is ignored, and what would change the answer and is not
supported is refused by name. Reference: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Ignored = Any
"""Accepted from OpenAI's clients; it does not change an answer."""

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenIds = list[Annotated[int, Field(ge=0, lt=2**31)]]


class Part(BaseModel):
    """A piece of a request: what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Part):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class ToolFunction(Part):
    """What the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    """One of `tools`."""

    type: Literal["function"]
    function: ToolFunction


class ChosenFunction(Part):
    """A function's name."""

    name: FunctionName


class NamedChoice(Part):
    """`tool_choice` of one function."""

    type: Literal["function"]
    function: ChosenFunction


class CalledFunction(Part):
    """A call of an earlier turn; `arguments` is a JSON object as text."""

    name: FunctionName
    arguments: str
    parsed_arguments: Ignored = None


class EarlierCall(Part):
    """One of a message's `tool_calls`."""

    id: Annotated[str, Field(max_length=64)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None


class ChatMessage(Part):
    """One turn. `developer` is OpenAI's newer word for `system`; beside `tool_calls` no content is needed."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None
    annotations: Ignored = None
    parsed: Ignored = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[EarlierCall], Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=64)] | None = None

    def as_turn(self) -> dict[str, Any]:
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Part):
    """`include_usage`: a last chunk with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class SchemaSpec(Part):
    """OpenAI's wrapper of a JSON schema."""

    name: Annotated[str, Field(max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Part):
    """`text`, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaSpec | None = None


class SamplingRequest(Part):
    """What all routes take."""

    model: Annotated[str, Field(max_length=256)] | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None


class GenerationRequest(SamplingRequest):
    """What the routes take whose replies hold several choices."""

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    prediction: Ignored = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | TokenIds | list[str] | list[TokenIds]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
