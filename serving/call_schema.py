"""The JSON schema of a call of one of several functions, each of which has a schema of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from serving.http.errors import ApiError

_DEFINITIONS = ("$defs", "definitions")
_DEFINED = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")


def call_schema(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """References within a function's parameters mean the root of these: what they refer to goes to the root
    of the whole schema, under a name that no other function has, as grammars name rules by a reference's end.

    Raises ApiError 400 for a reference to another place.
    """
    named: dict[str, Any] = {}
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": _arguments({"type": "object", **function.get("parameters", {})}, index, named),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, function in enumerate(functions)
    ]
    whole: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**whole, "$defs": named} if named else whole


def _arguments(parameters: dict[str, Any], index: int, named: dict[str, Any]) -> dict[str, Any]:
    """The schema of function number `index`'s arguments; what it refers to goes into `named`."""
    root, prefix = f"function{index}", f"defs{index}-"
    moved: dict[str, Any] = _moved(parameters, root, prefix)
    for key in _DEFINITIONS:
        if isinstance(defined := moved.pop(key, None), dict):
            named.update({f"{prefix}{name}": schema for name, schema in defined.items()})
    if not _holds_itself(parameters):
        return moved
    named[root] = moved
    return {"$ref": f"#/$defs/{root}"}


def _moved(value: Any, root: str, prefix: str) -> Any:
    if isinstance(value, list):
        return [_moved(each, root, prefix) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _moved(each, root, prefix) for key, each in value.items()}
    if isinstance(reference := value.get("$ref"), str):
        defined = _DEFINED.fullmatch(reference)
        if reference != "#" and defined is None:
            message = "'$ref' in a function's parameters may be '#' or '#/$defs/NAME'"
            raise ApiError(400, message, param="tools", code="invalid_json_schema")
        found["$ref"] = f"#/$defs/{root if defined is None else prefix + defined[1]}"
    return found


def _holds_itself(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("$ref") == "#" or any(map(_holds_itself, value.values()))
    return isinstance(value, list) and any(map(_holds_itself, value))
