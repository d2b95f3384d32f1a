"""What llama.cpp lets through by a schema's grammar is what a validator of JSON schemas does."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import llama_cpp
import numpy as np
import pytest

from serving.engine.llamacpp.json_schema import MAX_COUNT, grammar_of_schema
from serving.engine.llamacpp.model import LlamaModel

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Grammar:
    """A schema's grammar in llama.cpp, asked one token after the other."""

    def __init__(self, model: LlamaModel, schema: Any) -> None:
        self._model = model
        self._grammar = grammar_of_schema(json.dumps(schema)).encode()

    def allows(self, text: str) -> bool:
        sampler = llama_cpp.llama_sampler_init_grammar(self._model.vocab, self._grammar, b"root")
        assert sampler
        try:
            return all(
                _takes(sampler, token)
                for character in text
                for token in self._model.tokenize(character.encode(), special=False, add_bos=False)
            ) and _allows(sampler, min(self._model.end_tokens))
        finally:
            llama_cpp.llama_sampler_free(sampler)


def _allows(sampler: Any, token: int) -> bool:
    one = np.array([(token, 1.0, 0.0)], _CANDIDATE)
    data = one.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    array = llama_cpp.llama_token_data_array(data=data, size=1, selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    return math.isfinite(one["logit"][0])


def _takes(sampler: Any, token: int) -> bool:
    if not _allows(sampler, token):
        return False
    llama_cpp.llama_sampler_accept(sampler, token)
    return True


@pytest.fixture(scope="module")
def vocabulary(bundled_model: Path) -> Iterator[LlamaModel]:
    model = LlamaModel.open(str(bundled_model), vocab_only=True)
    yield model
    model.close()


VALUES = [
    None, True, False, 0, 1, 3, 5, 6, -2, 2.5, "", "a", "ab", "red", "blue", "green", "date", [], [1], [1, 2],
    ["a"], [1, "a"], [[1], []], [{}], {}, {"a": 1}, {"a": "x"}, {"a": None}, {"a": 1, "b": "x"}, {"b": "x"},
    {"a": {"a": 1}}, {"a": 1, "c": [1]}, {"a": {"b": "x"}, "b": "x"}, {"pattern": 1}, {"ab": 1},
    {"kind": "one", "v": 1}, {"kind": "two", "v": 1}, {"kind": "two", "v": "x"}, {"v": 1, "kind": "one"},
    {"x": 1, "y": 2}, {"left": 1, "right": 2, "op": "add"},
    {"left": {"left": 1, "right": 2, "op": "mul"}, "right": 2, "op": "add"},
    {"left": 1, "right": 2, "op": "none"}, {"left": 1, "op": "neg"}, {"left": 1}, {"left": 1, "right": 2},
]  # fmt: skip
EXPR = {"$ref": "#/$defs/Expr"}
CLOSED = {"additionalProperties": False}


def an_object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **CLOSED}


A_ONE, B_TEXT = an_object("a", a={"type": "integer"}), an_object("b", b={"type": "string"})
SCHEMAS = [
    {},
    {"title": "A", "description": "anything"},
    True,
    {"type": "object"},
    {"type": ["string", "null"], "enum": ["red", "blue", None]},
    {"type": ["integer", "null"], "enum": ["red", 1, None, True]},
    {"type": ["object", "null"], "properties": {"a": {"type": "integer"}}, "required": ["a"], **CLOSED},
    {"type": ["array", "null"], "items": {"type": "integer"}},
    {"type": ["integer"], "minimum": 1, "maximum": 5},
    {"type": ["number", "integer", "string"], "maxLength": 1},
    {"type": "string", "enum": ["a", "ab", "date"]},
    {"enum": ["a", "ab", 1, [1, 2], {"a": 1}, None]},
    {"const": "a", "enum": ["a", "b"]},
    {"$defs": {"E": {"enum": ["red", "blue"]}}, "allOf": [{"$ref": "#/$defs/E"}], "default": "red"},
    {"$defs": {"E": {"enum": ["red", "blue"]}}, "$ref": "#/$defs/E", "enum": ["blue", "green"]},
    {"allOf": [{"type": "integer", "minimum": 1}, {"type": "number"}, {"maximum": 5, "type": "integer"}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "string"}}},
        ],
        "unevaluatedProperties": False,
    },
    {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "type": "object", **CLOSED,
     "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"type": "array", "items": {}},
    {"type": "array", "items": True, "minItems": 2},
    {"type": "array", "items": False},
    {"type": "array", "maxItems": 1},
    {"prefixItems": [{"type": "integer"}, {}], "type": "array", "minItems": 2, "items": False},
    an_object(pattern=True, a={"type": "integer"}),
    an_object("a", a={"type": "integer"}, b=False),
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "required": ["a"]},
    {"anyOf": [A_ONE, B_TEXT, A_ONE]},
    {"oneOf": [A_ONE, {"type": "string", "maxLength": 2}, {"type": "null"}]},
    {"anyOf": [{"type": "string"}, {"enum": ["red", 1]}]},
    {"anyOf": [
        an_object("kind", "v", kind={"const": "one"}, v={"type": "integer"}),
        an_object("kind", "v", kind={"const": "two"}, v={"type": "string"}),
    ]},
    {"anyOf": [an_object("left", left=EXPR, right=EXPR), an_object("left", left=EXPR, op={"type": "string"})],
     "$defs": {"Expr": {"type": "integer"}}},
    {"$defs": {"Expr": {"anyOf": [
        {"type": "number"},
        an_object("left", "right", "op", left=EXPR, right=EXPR, op={"const": "add"}),
        an_object("left", "right", "op", left=EXPR, right=EXPR, op={"const": "mul"}),
        an_object("left", "op", left=EXPR, op={"const": "neg"}),
    ]}}, **EXPR},
    {"$defs": {"Node": an_object(a={"anyOf": [{"$ref": "#"}, {"type": "integer"}]})}, "$ref": "#/$defs/Node"},
    {**an_object(a={"anyOf": [{"$ref": "#"}, {"type": "integer"}]}, b={"$ref": "#/properties/a"})},
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_a_grammar_allows_what_its_schema_does(vocabulary: LlamaModel, index: int) -> None:
    schema = SCHEMAS[index]
    grammar = Grammar(vocabulary, schema)
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        allowed = grammar.allows(json.dumps(value))
        assert allowed == validator.is_valid(value) or _is_in_another_order(value, allowed), value


def _is_in_another_order(value: Any, allowed: bool) -> bool:
    """Properties have the schema's order."""
    return not allowed and value == {"v": 1, "kind": "one"}


def test_other_names_are_none_of_the_named(vocabulary: LlamaModel) -> None:
    named = {each: {"type": "integer"} for each in ("a", "ab", "abc", "b", "^x", "é]", "-")}
    grammar = Grammar(
        vocabulary, {"type": "object", "properties": named, "additionalProperties": {"type": "null"}}
    )
    for name in (*named, "", "abcd", "ac", "c", "x", "^", "é", "]", "ba", "a\n"):
        assert grammar.allows(json.dumps({name: None}, ensure_ascii=False)) == (name not in named), name
        assert grammar.allows(json.dumps({name: 1}, ensure_ascii=False)) == (name in named), name


@pytest.mark.parametrize("least", [0, 1, MAX_COUNT])
def test_the_largest_counts_compile(vocabulary: LlamaModel, least: int) -> None:
    text = Grammar(vocabulary, {"type": "string", "minLength": least, "maxLength": MAX_COUNT})
    items = {"type": "array", "items": {"type": "null"}, "minItems": least, "maxItems": MAX_COUNT}
    array = Grammar(vocabulary, items)
    for count in (0, 1, MAX_COUNT - 1, MAX_COUNT, MAX_COUNT + 1):
        assert text.allows(json.dumps("x" * count)) == (least <= count <= MAX_COUNT)
        assert array.allows(json.dumps([None] * count)) == (least <= count <= MAX_COUNT)


def test_strings_and_formats(vocabulary: LlamaModel) -> None:
    for wanted, good, bad in (
        ("date", "2024-02-28", "2024-2-28"),
        ("time", "10:11:12Z", "10:11"),
        ("date-time", "2024-02-28T10:11:12+01:00", "2024-02-28"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
    ):
        grammar = Grammar(vocabulary, {"type": "array", "items": {"type": "string", "format": wanted}})
        assert grammar.allows(json.dumps([good, good]))
        assert not grammar.allows(json.dumps([bad]))


@pytest.mark.parametrize("tag_first", [False, True])
def test_what_is_deep_is_followed_in_one_way(vocabulary: LlamaModel, tag_first: bool) -> None:
    """Three operations at forty levels: read in all ways that begin alike they would be 3 ** 40."""

    def operation(name: str) -> dict[str, Any]:
        tag, sides = {"op": {"const": name}}, {"left": EXPR, "right": EXPR}
        parts = {**tag, **sides} if tag_first else {**sides, **tag}
        return an_object(*parts, **parts)

    operations = [operation(name) for name in ("add", "mul", "sub")]
    grammar = Grammar(vocabulary, {"$defs": {"Expr": {"anyOf": [{"type": "number"}, *operations]}}, **EXPR})
    value: Any = 1
    for level in range(40):
        tag, sides = {"op": ("add", "mul", "sub")[level % 3]}, {"left": value, "right": 2.5}
        value = {**tag, **sides} if tag_first else {**sides, **tag}
    assert grammar.allows(json.dumps(value))


def test_equal_alternatives_are_one(vocabulary: LlamaModel) -> None:
    one = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
    grammar = Grammar(vocabulary, {"anyOf": [one, {"type": "integer"}, {**one, "title": "the same"}]})
    assert grammar.allows("[" * 100 + "1" + "]" * 100)
    assert not grammar.allows("[" * 100 + "1" + "]" * 99)
