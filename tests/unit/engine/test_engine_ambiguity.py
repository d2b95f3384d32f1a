"""Grammars of which the ways multiply are refused before llama.cpp hangs in them, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.engine import RequestError
from serving.engine.llamacpp import ambiguity
from serving.engine.llamacpp.ambiguity import check_ways
from serving.engine.llamacpp.grammar_facts import AmbiguousGrammar

pytest.importorskip("llama_cpp")

from serving.engine.llamacpp.json_schema import grammar_of_schema

EXPR = {"$ref": "#/$defs/Expr"}
NODE = {"$ref": "#/$defs/Node"}


def an_object(required: int = 100, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)[:required]}


def defined(**definitions: Any) -> dict[str, Any]:
    """The first definition, which others and itself may refer to."""
    return {"$defs": definitions, "$ref": f"#/$defs/{next(iter(definitions))}"}


def expressions(*, tag: str, required: int = 100) -> dict[str, Any]:
    """Sums, products and differences of each other, with the tag that tells them apart first or last."""
    operations = [
        an_object(required, op={"const": each}, left=EXPR, right=EXPR)
        if tag == "first"
        else an_object(required, left=EXPR, right=EXPR, op={"const": each})
        for each in ("add", "mul", "sub", "div")
    ]
    return defined(Expr={"anyOf": [{"type": "number"}, *operations]})


LIST_OF_ITSELF = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
KIND = {"type": "string"}
ORDINARY = {
    "equal alternatives": {"anyOf": [LIST_OF_ITSELF, {**LIST_OF_ITSELF, "title": "again"}]},
    "tag last": expressions(tag="last"),
    "tag first": expressions(tag="first"),
    "tag last, with a default": expressions(tag="last", required=2),
    "each a definition": defined(
        Expr={"oneOf": [{"$ref": "#/$defs/Sum"}, {"$ref": "#/$defs/Product"}, {"type": "integer"}]},
        Sum=an_object(left=EXPR, right=EXPR, kind={"const": "sum"}),
        Product=an_object(left=EXPR, right=EXPR, kind={"const": "product"}),
    ),
    "one is the other's start": defined(
        Expr={"anyOf": [an_object(of=EXPR), an_object(of=EXPR, by=EXPR), {"type": "null"}]}
    ),
    "tree": defined(Node=an_object(1, value={"type": "integer"}, children={"type": "array", "items": NODE})),
    "linked list": defined(Node=an_object(value={}, next={"anyOf": [NODE, {"type": "null"}]})),
    "two trees": {
        "$defs": {
            "One": an_object(1, v=KIND, kids={"type": "array", "items": {"$ref": "#/$defs/One"}}, a=KIND),
            "Two": an_object(1, v=KIND, kids={"type": "array", "items": {"$ref": "#/$defs/Two"}}, b=KIND),
        },
        "anyOf": [{"$ref": "#/$defs/One"}, {"$ref": "#/$defs/Two"}],
    },
    "any of its own names": defined(
        Node={**an_object(0, child=NODE, children={"type": "array"}), "additionalProperties": NODE}
    ),
    "all may be left out": an_object(0, **{f"k{index}": {"type": "string"} for index in range(100)}),
    "anything": {},
    "any object": {"type": "object"},
    "counted": {"type": "array", "items": {"type": "string", "maxLength": 1024}, "maxItems": 1024},
    "text or one of some": {"anyOf": [{"enum": ["a", "ab", 1, None]}, {"type": "string", "maxLength": 9}]},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_schemas_pass(name: str) -> None:
    assert grammar_of_schema(json.dumps(ORDINARY[name]))


@pytest.mark.parametrize(
    ("schema", "at_fault"),
    [
        ({"anyOf": [LIST_OF_ITSELF, {**LIST_OF_ITSELF, "minItems": 2}]}, "definition-0"),
        (defined(Expr={"anyOf": [an_object(0, a=EXPR, x=KIND), an_object(0, y=KIND, a=EXPR)]}), "Expr"),
        (
            defined(
                Top=an_object(e=EXPR),
                Expr={"anyOf": [{"type": "array", "items": EXPR, "maxItems": n} for n in (2, 3)]},
            ),
            "Expr",
        ),
    ],
)  # fmt: skip
def test_schemas_of_which_the_ways_multiply_are_refused_by_name(
    schema: dict[str, Any], at_fault: str
) -> None:
    with pytest.raises(RequestError, match=rf"ambiguous.*{at_fault}") as caught:
        grammar_of_schema(json.dumps(schema))
    assert caught.value.code == "bad_json_schema"


def test_no_recursion_is_needed_to_multiply() -> None:
    levels = {f"D{n}": {"type": "array", "items": {"$ref": f"#/$defs/D{n + 1}"}} for n in range(12)}
    both = {name: {"anyOf": [each, {**each, "maxItems": 3}]} for name, each in levels.items()}
    with pytest.raises(RequestError, match="ambiguous"):
        grammar_of_schema(json.dumps(defined(**both, D12={"type": "null"})))


def test_references_that_lead_to_ever_more_are_not_followed() -> None:
    levels = {
        f"D{n}{side}": {"anyOf": [{"$ref": f"#/$defs/D{n + 1}a"}, {"$ref": f"#/$defs/D{n + 1}b"}]}
        for n in range(30)
        for side in "ab"
    }
    with pytest.raises(RequestError, match="references lead to more than"):
        grammar_of_schema(json.dumps(defined(**levels, D30a=an_object(x={}), D30b=an_object(y={}))))


STEPS = range(40)
START = "root ::= r0\nr40 ::= [a]\n"
DECOY = 'decoy ::= "a" [a-z] | "a" [a-y] | "a" [0-9] | "a" [0-8]'


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "[" root "x" | "[" root "y" | "z"',
        f'root ::= decoy | "b" evil\n{DECOY}\nevil ::= "[" evil "x" | "[" evil "y" | decoy',
        'root ::= "(" (a | b) | "z"\na ::= "(" b "x" | "1"\nb ::= "(" a "y" | "(" b "z" | "1"',
        START + "\n".join(f'r{n} ::= r{n + 1} "x" | r{n + 1} "y"' for n in STEPS),
        START + "\n".join(f"r{n} ::= r{n + 1} | r{n + 1}" for n in STEPS),
    ],
)  # fmt: skip
def test_grammars_of_which_the_ways_multiply(grammar: str) -> None:
    with pytest.raises(AmbiguousGrammar):
        check_ways(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "yes" | "no"',
        'root ::= [^"\\\\\\x7F\\x00-\\x1F]* # any\n',
        'root ::= ws "{" ws (pair ("," ws pair)*)? "}" ws\npair ::= [a-z]+ ws ":" ws [0-9]{1,40} ws\n'
        "ws ::= ([ \\t\\n] ws)?",
        "root ::= word (\n  ws word )* .?\nword ::= [a-zA-Z]+ | [a-z]+ [0-9]+\nws ::= [ ]+ | [ \\n]+",
        'root ::= expr "=" term\nexpr ::= term ([-+*/] term)*\nterm ::= "(" expr ")" | [0-9]+',
        'root ::= "[1-5]" | "\\"" [\\]\\-] "\\u00e9" | !<[5]> <[7]> | "" | [^]',
        'root ::= ("a" | "ab" | "abc"){3,7} "x"{2} "y"{2,}',
    ],
)
def test_ordinary_grammars_pass_after_few_steps(grammar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the limit holds is in test_what_is_too_much_to_follow_is_refused."""
    monkeypatch.setattr(ambiguity, "_MAX_STEPS", 1000)
    assert ambiguity.check_ways.__wrapped__(grammar) is None


@pytest.mark.parametrize(
    ("grammar", "what"),
    [
        ("root ::= (", "parenthesis"),
        ("other ::= [a]", "no `root` rule"),
        ("root ::= other", "'other' is not defined"),
        ("root ::= *", "repeats nothing"),
        ('root ::= "a', "cannot be read"),
        ('root ::= "\\q"', "escape"),
        ('root ::= "a"{3000}', "2000 repetitions"),
        ('root ::= root "a" | "b"', "left recursion"),
        ('root ::= empty root "x" | "y"\nempty ::= nothing\nnothing ::= "z" | ""', "left recursion"),
        ('root ::= "a"\n| "b"', "rule's name"),
    ],
)
def test_what_does_not_compile_is_said_and_not_printed(grammar: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        check_ways(grammar)


def test_what_is_too_much_to_follow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f'"{word}" [0-9] " end of {word}"' for word in ("aa", "ab", "ac")]
    grammar = f"root ::= [a-z]{{2}} root | {' | '.join(words)}"
    check_ways(grammar)
    monkeypatch.setattr(ambiguity, "_MAX_STEPS", 20)
    with pytest.raises(ValueError, match="begin alike"):
        check_ways(grammar + " ")
