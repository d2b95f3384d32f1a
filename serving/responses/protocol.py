"""Requests of OpenAI's Responses API, by allow-list.

Nothing is stored here: a request brings its whole conversation, in `input`.
Reference: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from serving.protocol import FunctionName, Ignored, Part, Said, SamplingRequest


class TextContent(Said):
    """A part of a message: what was said to the model, or by it."""

    type: Literal["input_text", "output_text", "text"]
    text: str


def _text_or_list(value: Any) -> str:
    return "item:list" if isinstance(value, list) else "item:text"


Content = Annotated[
    Annotated[str, Tag("item:text")]
    | Annotated[Annotated[list[TextContent], Field(min_length=1, fail_fast=True)], Tag("item:list")],
    Discriminator(_text_or_list),
]


class MessageItem(Said):
    """One turn, of the user, of the model, or with instructions."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(Said):
    """A call that the model made; `arguments` is a JSON object as text."""

    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str


class FunctionOutputItem(Said):
    """What the called function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(Said):
    """Thoughts of an earlier turn, which no template shows to a model again: left out."""

    type: Literal["reasoning"]


_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _kind_of_item(value: Any) -> str | None:
    """A message needs no type; None for what is not known here."""
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return f"item:{kind}" if kind in _ITEMS else None


Item = Annotated[
    Annotated[MessageItem, Tag("item:message")]
    | Annotated[FunctionCallItem, Tag("item:function_call")]
    | Annotated[FunctionOutputItem, Tag("item:function_call_output")]
    | Annotated[ReasoningItem, Tag("item:reasoning")],
    Discriminator(
        _kind_of_item,
        custom_error_type="unsupported_item",
        custom_error_message=f"an item must be an object whose type is one of {', '.join(_ITEMS)}",
    ),
]


class FunctionTool(Part):
    """One of `tools`; `parameters` is a JSON schema."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Ignored = None
    output_schema: Ignored = None


class FunctionChoice(Part):
    """`tool_choice` of one function, and one of those that may be called."""

    type: Literal["function"]
    name: FunctionName


class AllowedTools(Part):
    """`tool_choice` among some of the functions."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1, fail_fast=True)]


class TextFormat(Part):
    """Plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class TextSettings(Part):
    """How the answer is written. These models have no verbosity."""

    format: TextFormat | None = None
    verbosity: None = None


class ReasoningSettings(Part):
    """These models have no reasoning that could be set: `none`, or nothing, is all that fits them."""

    effort: Literal["none"] | None = None
    summary: Ignored = None
    generate_summary: Ignored = None


class ResponseStreamOptions(Part):
    """Nothing in it changes an answer."""

    include_obfuscation: Ignored = None


def _never(value: bool) -> bool:
    if value:
        raise ValueError("must be false")
    return value


class ResponsesRequest(SamplingRequest):
    """POST /v1/responses."""

    input: Annotated[
        Annotated[str, Tag("item:text")]
        | Annotated[Annotated[list[Item], Field(min_length=1, fail_fast=True)], Tag("item:list")],
        Discriminator(_text_or_list),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextSettings | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Ignored = None
    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    reasoning: ReasoningSettings | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: Annotated[bool, AfterValidator(_never)] | None = None
    stream_options: ResponseStreamOptions | None = None
    prompt_cache_options: Ignored = None
