"""From JSON schemas to llama.cpp's grammars: what its converter, which takes a schema as text, lacks."""

from __future__ import annotations

import json
from typing import Any

from serving.engine.errors import RequestError

_ROOT = "the_root"
_BY_NAME = ("properties", "$defs", "definitions")
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def grammar_of_schema(schema: str) -> str:
    """A JSON schema as GBNF. Raises RequestError `bad_json_schema`.

    As in llama.cpp's own converter, what no grammar says well is let go without a word: bounds of fractions,
    uniqueness, conditions, names of properties by pattern.
    """
    try:
        wanted = json.loads(schema)
        if not isinstance(wanted, dict):
            raise ValueError("it must be an object")
        return _converted(_with_named_root(_without_true(wanted)))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        AssertionError,
        OverflowError,
    ) as error:
        raise RequestError(
            "bad_json_schema", f"json_schema: it has a part that is not supported: {error}"[:300]
        ) from error


def _converted(schema: dict[str, Any]) -> str:
    from serving.engine.llamacpp.schema_converter import Converter

    converter = Converter()
    converter.visit(converter.resolve_refs(schema, "stdin"), "")
    return str(converter.format_grammar())


def _without_true(schema: Any) -> Any:
    """`true` allows everything, as the empty schema does; the converter knows only the latter."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key in _BY_NAME:
        if isinstance(found.get(key), dict):
            found[key] = {name: _without_true(each) for name, each in found[key].items()}
    for key in _IN_LISTS:
        if isinstance(found.get(key), list):
            found[key] = [_without_true(each) for each in found[key]]
    if "items" in found:
        found["items"] = _without_true(found["items"])
    return found


def _with_named_root(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that is, or holds, itself: its root gets a name, which references can find."""
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#/$defs/"):
        named = schema.get("$defs", {}).get(target.removeprefix("#/$defs/"))
        if isinstance(named, dict) and "$ref" not in named:
            return {**named, "$defs": schema["$defs"]}
    if target is None and _refers_to_root(schema):
        inner = _renamed({key: value for key, value in schema.items() if key != "$defs"})
        return {**inner, "$defs": {**_renamed(schema.get("$defs", {})), _ROOT: inner}}
    return schema


def _refers_to_root(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("$ref") == "#" or any(map(_refers_to_root, value.values()))
    return isinstance(value, list) and any(map(_refers_to_root, value))


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("$ref") == "#":
            return {**value, "$ref": f"#/$defs/{_ROOT}"}
        return {key: _renamed(each) for key, each in value.items()}
    return [_renamed(each) for each in value] if isinstance(value, list) else value
