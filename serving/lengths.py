"""How much of anything a body holds: looked at before it is read, which of so much would take long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.http.errors import ApiError
from serving.parsing import TOO_MANY
from serving.settings import RequestLimits

_WITHIN = ("content", "output", "tool_calls")
"""Lists that turns hold."""


def check_lengths(body: Mapping[str, Any], limits: RequestLimits) -> None:
    """Of any route's body. Raises ApiError 400 for more than the limits allow."""
    most = {
        "messages": limits.max_messages,
        "input": limits.max_messages,
        "tools": limits.max_tools,
        "stop": limits.max_stops,
        "logit_bias": limits.max_logit_biases,
    }
    for name, count in most.items():
        if _length(body.get(name)) > count:
            raise over(name, count, TOO_MANY)
    for name in ("messages", "input"):
        if _num_parts(body.get(name)) > limits.max_parts:
            message = f"{name} must not have more than {limits.max_parts} parts and calls"
            raise ApiError(400, message, param=name, code=TOO_MANY)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > limits.max_choices and not isinstance(prompt[0], int):
        raise too_many_choices("prompt", limits)


def over(param: str, most: int, code: str = "integer_above_max_value") -> ApiError:
    what = "a length of " if code == TOO_MANY else ""
    return ApiError(400, f"{param} must not exceed {what}{most}", param=param, code=code)


def too_many_choices(param: str, limits: RequestLimits) -> ApiError:
    message = f"at most {limits.max_choices} answers to one request"
    return ApiError(400, message, param=param, code="integer_above_max_value")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _num_parts(turns: Any) -> int:
    if not isinstance(turns, list):
        return 0
    return sum(_length(turn.get(name)) for turn in turns if isinstance(turn, dict) for name in _WITHIN)
