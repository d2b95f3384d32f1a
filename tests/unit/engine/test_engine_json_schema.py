"""Schemas that llama.cpp's converter does not take as they are."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

import pytest

from serving.engine import RequestError

pytest.importorskip("llama_cpp")

from llama_cpp.llama_grammar import RESERVED_NAMES

from serving.engine.llamacpp.json_schema import grammar_of_schema
from serving.engine.llamacpp.whole_numbers import whole_numbers

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
    assert rules({"enum": ["🦜 grün"]})["root"] == r'"\"🦜 grün\""'


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"},
        {"$defs": {"Node": NODE}, "type": "object", "properties": {"list": {"$ref": "#/$defs/Node"}}},
    ],
)
def test_a_schema_may_hold_itself_by_name(schema: dict[str, Any]) -> None:
    found = rules(schema)
    (node,) = (name for name, body in found.items() if "-value-kv" in body)
    assert any(node in body or "definition-0" in body for name, body in found.items() if "-next" in name)


def test_a_schema_may_hold_its_root() -> None:
    inner = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    found = rules({"type": "object", "properties": {"next": inner}, "required": ["next"]})
    assert any("definition-0" in body for name, body in found.items() if name.endswith("next"))


def test_true_allows_everything() -> None:
    one, other = ({"type": "object", "properties": {"a": each}, "required": ["a"]} for each in (True, {}))
    assert rules(one) == rules(other)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"type": "integer", "minimum": "1"},
        {"type": "integer", "minimum": math.inf},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"$ref": "#"},
        {"$ref": "#/$defs/none"},
        {"enum": 5},
    ],
)
def test_what_is_not_supported_is_one_error(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        grammar_of_schema(json.dumps(schema))
    assert caught.value.code == "bad_json_schema"


def as_pattern(rule: str) -> re.Pattern[str]:
    """The rule as a regular expression: of what these rules use, only quotes and spaces differ."""
    return re.compile(rule.replace('"', "").replace(" ", ""))


def test_whole_numbers_are_those_between_the_bounds() -> None:
    numbers = range(-1300, 1300)
    chosen = random.Random(0)
    bounds = [sorted(chosen.sample(range(-1200, 1200), 2)) for _ in range(150)]
    bounds += [[0, 0], [-1, 1], [9, 10], [99, 100], [1, 5], [-10, -10], [-999, 999], [0, 1000]]
    for low, high in bounds:
        for given in ((low, high), (None, high), (low, None)):
            pattern = as_pattern(whole_numbers(*given))
            found = [number for number in numbers if pattern.fullmatch(str(number))]
            least, most = (-1300 if given[0] is None else low), (1299 if given[1] is None else high)
            assert found == list(range(least, most + 1)), given
            assert not any(pattern.fullmatch(text) for text in ("", "-", "007", "-0", "+1", "1.0"))
    assert as_pattern(whole_numbers(None, None)).fullmatch("9" * 16)
    assert whole_numbers(-(10**300), 10**300) == whole_numbers(None, None)
    assert whole_numbers(0, None).count("|") == 1  # each alternative costs every token
    with pytest.raises(ValueError, match="no whole number from"):
        whole_numbers(10**20, None)


@pytest.mark.parametrize(
    ("bounds", "least", "most"),
    [
        ({"minimum": 1, "maximum": 5}, 1, 5),
        ({"minimum": 0.5, "maximum": 5.5}, 1, 5),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 6}, 1, 5),
        ({"exclusiveMinimum": 0.5, "exclusiveMaximum": 5.5, "minimum": -3}, 1, 5),
        ({"minimum": 0, "exclusiveMinimum": True, "maximum": 6, "exclusiveMaximum": True}, 1, 5),
        ({"minimum": 1, "exclusiveMinimum": False, "maximum": 5, "exclusiveMaximum": False}, 1, 5),
        ({"minimum": 1, "maximum": 5, "exclusiveMaximum": None}, 1, 5),
    ],
)
def test_bounds_of_integers_are_kept(bounds: dict[str, float], least: int, most: int) -> None:
    root = rules({"type": "integer", **bounds})["root"]
    pattern = as_pattern(root.removesuffix(" space"))
    assert [number for number in range(-20, 20) if pattern.fullmatch(str(number))] == list(
        range(least, most + 1)
    )


def test_strings_hold_no_raw_control_characters() -> None:
    for schema in ({"type": "string"}, {"type": "string", "maxLength": 3}, {"type": "object"}):
        assert rules(schema)["char"].startswith(r'[^"\\\x7F\x00-\x1F] | ')


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_bounded_integer_replaces_no_rule_of_its_name(name: str) -> None:
    properties = {name: {"type": "integer", "minimum": 0, "maximum": 10}, "free": {"type": "object"}}
    found = rules({"type": "object", "properties": properties, "required": [name, "free"]})
    free = rules({"type": "object", "properties": {"free": {"type": "object"}}})
    assert found["root"].startswith('"{" space')
    for builtin in ("value", "number", "string", "object", "integral-part"):
        assert found[builtin] == free[builtin]
