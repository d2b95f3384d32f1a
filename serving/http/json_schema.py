"""Which JSON schemas a client may have its answer shaped by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from serving.engine.llamacpp.json_schema import MAX_COUNT
from serving.http.errors import ApiError
from serving.settings import RequestLimits

_REFUSED = frozenset({"pattern", "patternProperties", "$dynamicRef", "$recursiveRef"})
_COUNTED = frozenset({"minLength", "maxLength", "minItems", "maxItems"})
_OF_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""What stands in these has a name of the client's, which is no keyword."""
_DATA = frozenset({"const", "enum", "default", "examples", "example"})


def check_schema(schema: dict[str, Any], limits: RequestLimits, param: str) -> str:
    """The schema as JSON text.

    Raises ApiError 400 for regular expressions, for references to elsewhere, and for sizes whose grammar
    would take long to compile.
    """
    text = json.dumps(schema)
    if len(text) > limits.max_schema_bytes:
        raise _bad(f"the schema is longer than {limits.max_schema_bytes} bytes", param)
    check_depth(schema, limits, param, "the schema is nested")
    for path, value in _keywords(schema, ()):
        key = path[-1]
        if key in _REFUSED:
            raise _bad(f"'{key}' is not supported in a schema{_place(path)}", param)
        if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise _bad(f"'$ref' may refer only into the same schema{_place(path)}", param)
        if key in _COUNTED and isinstance(value, int) and value > MAX_COUNT:
            raise _bad(f"'{key}' must not be above {MAX_COUNT}{_place(path)}", param)
    return text


def check_depth(value: object, limits: RequestLimits, param: str, what: str = "nested") -> None:
    """Raises ApiError 400 for JSON that is nested deeper than a schema may be."""
    if any(depth > limits.max_schema_depth for depth in _depths(value, 1)):
        raise _bad(f"{what} deeper than {limits.max_schema_depth}", param)


def _depths(value: object, depth: int) -> Iterator[int]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield depth
        yield from _depths(part, depth + 1)


def _keywords(schema: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Each keyword with where it stands; names of properties and the like are none."""
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from _keywords(part, (*path, str(index)))
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        at = (*path, key)
        yield at, value
        if key in _OF_NAMES and isinstance(value, dict):
            for name, part in value.items():
                yield from _keywords(part, (*at, name))
        elif key not in _DATA:
            yield from _keywords(value, at)


def _place(path: tuple[str, ...]) -> str:
    """Where a keyword stands, for a message."""
    return f" (at {'.'.join(path[:-1])[:200]})" if len(path) > 1 else ""


def _bad(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_json_schema")
