"""From a request's tools to what the template shows the model and the grammar holds it to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.call_schema import call_schema
from serving.http.errors import ApiError
from serving.http.json_schema import check_depth, check_schema
from serving.protocol import ChatMessage, NamedChoice, Tool
from serving.settings import RequestLimits

_CHOICE = "tool_choice"
_MISSING = "missing_required_parameter"


@dataclass(frozen=True)
class Choice:
    """Whether functions may be called, must be, or not at all; `names`: which, None: any."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: frozenset[str] | None = None


def choice_of(wanted: Literal["none", "auto", "required"] | NamedChoice | None) -> Choice:
    """What a chat request's `tool_choice` says."""
    if isinstance(wanted, NamedChoice):
        return Choice("required", frozenset({wanted.function.name}))
    return Choice(wanted or "auto")


def tools_of(tools: Sequence[Tool], choice: Choice, limits: RequestLimits) -> tuple[Mapping[str, Any], ...]:
    """The tools that the model may call now. Raises ApiError 400."""
    offered = tuple(tool.model_dump(exclude_none=True) for tool in tools)
    check_depth(offered, limits, "tools")
    if choice.names is not None:
        offered = tuple(tool for tool in offered if tool["function"]["name"] in choice.names)
    if not offered and (choice.names is not None or choice.mode == "required"):
        raise ApiError(
            400, "tool_choice asks for a tool that is not in tools", param=_CHOICE, code="invalid_value"
        )
    return () if choice.mode == "none" else offered


def forced_schema(tools: tuple[Mapping[str, Any], ...], choice: Choice, limits: RequestLimits) -> str | None:
    """The JSON schema of a call that the request insists on; None if the model may choose.

    Raises ApiError 400.
    """
    if not tools or choice.mode == "auto":
        return None
    functions = [tool["function"] for tool in tools]
    parameters = [function.get("parameters") for function in functions]
    if len(json.dumps(parameters)) > limits.max_schema_bytes:  # before what takes longer: they are all in it
        message = f"the schema is longer than {limits.max_schema_bytes} bytes"
        raise ApiError(400, message, param="tools", code="invalid_json_schema")
    return check_schema(call_schema(functions), limits, "tools")


def turn_of(index: int, message: ChatMessage, limits: RequestLimits) -> dict[str, Any]:
    """A message as chat templates take it. Raises ApiError 400."""
    at = f"messages.{index}"
    if message.content in (None, []) and message.refusal is None and not message.tool_calls:
        code = _MISSING if message.content is None else "empty_array"
        raise ApiError(400, f"missing parameter: {at}.content", param=f"{at}.content", code=code)
    turn: dict[str, Any] = message.as_turn()
    if message.role == "tool":
        if message.tool_call_id is None:
            param = f"{at}.tool_call_id"
            raise ApiError(400, f"missing parameter: {param}", param=param, code=_MISSING)
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": arguments_of(call.function.arguments, limits, f"{at}.tool_calls"),
                },
            }
            for call in message.tool_calls
        ]
    return turn


def arguments_of(text: str, limits: RequestLimits, param: str) -> dict[str, Any]:
    """An earlier call's arguments: templates write them as JSON themselves. Empty text is no arguments, as
    some models say it. Raises ApiError 400."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError(
            400, "a call's arguments must be a JSON object, as text", param=param, code="invalid_value"
        )
    check_depth(value, limits, param)
    return value
