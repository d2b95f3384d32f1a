"""Which JSON schemas a client may have its answer shaped by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from serving.http.errors import ApiError
from serving.settings import RequestLimits

_REFUSED = frozenset({"pattern", "patternProperties", "$dynamicRef", "$recursiveRef"})
_COUNTED = frozenset({"minLength", "maxLength", "minItems", "maxItems"})
_MAX_COUNT = 1024


def check_schema(schema: dict[str, Any], limits: RequestLimits, param: str) -> str:
    """The schema as JSON text.

    Raises ApiError 400 for regular expressions, for references to elsewhere, and for sizes whose grammar
    would take long to compile.
    """
    text = json.dumps(schema)
    if len(text) > limits.max_schema_bytes:
        raise _bad(f"the schema is longer than {limits.max_schema_bytes} bytes", param)
    for depth, key, value in _walk(schema, 1):
        if depth > limits.max_schema_depth:
            raise _bad(f"the schema is nested deeper than {limits.max_schema_depth}", param)
        if key in _REFUSED and not isinstance(value, dict):
            raise _bad(f"'{key}' is not supported in a schema", param)
        if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise _bad("'$ref' may refer only into the same schema", param)
        if key in _COUNTED and isinstance(value, int) and value > _MAX_COUNT:
            raise _bad(f"'{key}' must not be above {_MAX_COUNT}", param)
    return text


def check_depth(value: object, limits: RequestLimits, param: str) -> None:
    """Raises ApiError 400 for JSON that is nested deeper than a schema may be."""
    if any(depth > limits.max_schema_depth for depth, _, _ in _walk(value, 1)):
        raise _bad(f"nested deeper than {limits.max_schema_depth}", param)


def _walk(value: object, depth: int) -> Iterator[tuple[int, str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield depth, key, item
            yield from _walk(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield depth, "", item
            yield from _walk(item, depth + 1)


def _bad(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_json_schema")
