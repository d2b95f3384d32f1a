"""OpenAI's requests, by allow-list.

What is known is checked, what changes nothing is ignored, and what would change the answer and is not
supported is refused by name. Reference: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ignored = Any
"""Accepted from OpenAI's clients; it does not change an answer."""

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
"""Lists end at their first error: a body of a megabyte has room for hundreds of thousands."""


class Part(BaseModel):
    """A piece of a request: what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_name_will_do(cls, value: Any) -> Any:
        """To refuse it by: an error for each of many takes long."""
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in value if name not in known), None)
        return {name: value[name] for name in value if name in known or name == unknown}


class Said(BaseModel):
    """A piece of what was said before, as clients send it back: what it does not know changes no answer."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(Said):
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


class CalledFunction(Said):
    """A call of an earlier turn; `arguments` is a JSON object as text."""

    name: FunctionName
    arguments: str


class EarlierCall(Said):
    """One of a message's `tool_calls`."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Said):
    """One turn. `developer` is OpenAI's newer word for `system`; beside `tool_calls` no content is needed.

    What would be said in other words than text is refused, for it would be left out.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: str | None = None
    """Stands for the content where there is none."""
    audio: None = None
    images: None = None
    function_call: None = None
    tool_calls: Annotated[list[EarlierCall], Field(max_length=64, fail_fast=True)] | None = None
    tool_call_id: str | None = None

    def as_turn(self) -> dict[str, Any]:
        parts = self.content or self.refusal or ""
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
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
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

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    reasoning_effort: Literal["none"] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    prediction: Ignored = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[TokenIds], Field(fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """0, beside `echo`: the prompt alone, and how likely it is."""
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
