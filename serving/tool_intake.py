"""From a request's tools to what the template shows the model and the grammar holds it to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from serving.call_schema import call_schema
from serving.http.errors import ApiError
from serving.http.json_schema import check_depth, check_schema
from serving.protocol import ChatMessage, ChatRequest, NamedChoice
from serving.settings import RequestLimits

_CHOICE = "tool_choice"
_MISSING = "missing_required_parameter"


def tools_of(request: ChatRequest, limits: RequestLimits) -> tuple[Mapping[str, Any], ...]:
    """The tools that the model may call now. Raises ApiError 400."""
    tools = tuple(tool.model_dump(exclude_none=True) for tool in request.tools or ())
    if len(tools) > limits.max_tools:
        raise ApiError(400, f"at most {limits.max_tools} tools", param="tools", code="array_above_max_length")
    check_depth(tools, limits, "tools")
    choice = request.tool_choice
    if isinstance(choice, NamedChoice):
        tools = tuple(tool for tool in tools if tool["function"]["name"] == choice.function.name)
    if not tools and (isinstance(choice, NamedChoice) or choice == "required"):
        raise ApiError(
            400, "tool_choice asks for a tool that is not in tools", param=_CHOICE, code="invalid_value"
        )
    return () if choice == "none" else tools


def forced_schema(
    request: ChatRequest, tools: tuple[Mapping[str, Any], ...], limits: RequestLimits
) -> str | None:
    """The JSON schema of a call that the request insists on; None if the model may choose.

    Raises ApiError 400.
    """
    if not tools or request.tool_choice in (None, "auto"):
        return None
    return check_schema(call_schema([tool["function"] for tool in tools]), limits, "tools")


def turn_of(index: int, message: ChatMessage, limits: RequestLimits) -> dict[str, Any]:
    """A message as chat templates take it. Raises ApiError 400."""
    at = f"messages.{index}"
    if message.content is None and not message.tool_calls:
        raise ApiError(400, f"missing parameter: {at}.content", param=f"{at}.content", code=_MISSING)
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
                    "arguments": _arguments(call.function.arguments, limits, f"{at}.tool_calls"),
                },
            }
            for call in message.tool_calls
        ]
    return turn


def _arguments(text: str, limits: RequestLimits, param: str) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError(
            400, "a call's arguments must be a JSON object, as text", param=param, code="invalid_value"
        )
    check_depth(value, limits, param)
    return value
