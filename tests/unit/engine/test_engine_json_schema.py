"""Schemas that llama.cpp's converter does not take as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.engine import RequestError

pytest.importorskip("llama_cpp")

from serving.engine.llamacpp.json_schema import grammar_of_schema

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
}  # fmt: skip


def rules(schema: dict[str, Any]) -> dict[str, str]:
    lines = grammar_of_schema(json.dumps(schema)).splitlines()
    return {name: body for name, _, body in (line.partition(" ::= ") for line in lines)}


def test_a_character_beyond_16_bits_is_one_character() -> None:
    assert rules({"enum": ["🦜 grün"]})["root"] == r'"\"\U0001f99c gr\u00fcn\""'


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"},
        {"$defs": {"Node": NODE}, "type": "object", "properties": {"list": {"$ref": "#/$defs/Node"}}},
    ],
)
def test_a_schema_may_hold_itself_by_name(schema: dict[str, Any]) -> None:
    found = rules(schema)
    assert "value" in found["Node"] or "Node-value-kv" in found["Node"]
    assert any("Node" in body for name, body in found.items() if name.startswith("Node-next"))


def test_a_schema_may_hold_its_root() -> None:
    inner = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    found = rules({"type": "object", "properties": {"next": inner}, "required": ["next"]})
    assert "the-root" in " ".join(found.values())


def test_true_allows_everything() -> None:
    one, other = ({"type": "object", "properties": {"a": each}, "required": ["a"]} for each in (True, {}))
    assert rules(one) == rules(other)


@pytest.mark.parametrize("schema", [{"type": "strin"}, {"$ref": "#"}, {"$ref": "#/$defs/none"}, {"enum": 5}])
def test_what_is_not_supported_is_one_error(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        grammar_of_schema(json.dumps(schema))
    assert caught.value.code == "bad_json_schema"
