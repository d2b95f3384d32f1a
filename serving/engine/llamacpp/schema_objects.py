"""Objects as grammar rules, those of several schemas in one: what they begin with in common is read once.

Properties come in the schema's order, those that must be there first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

MAX_OPTIONAL = 256
"""Properties of an object that may be left out: before each key all that may follow are open."""
_SPACE = " space "


@dataclass
class _Node:
    """Where properties have been written, or left out, that several objects may have in common."""

    keys: dict[str, dict[tuple[str, bool], _Node]] = field(default_factory=dict)
    """Next properties: name -> (rule of the value, may be left out) -> what comes then."""
    can_end: bool = False
    others: list[str] = field(default_factory=list)
    """Rules of further properties, after which nothing else comes."""
    rule: str = ""
    """Of one further property or more; empty where a single one comes, or none."""


class Objects:
    """Writes the rule of objects that are alternatives."""

    def __init__(
        self,
        value_rule: Callable[[Any, str], str],
        add_rule: Callable[[str, str], str],
        literal: Callable[[str], str],
        string_rule: Callable[[Iterable[str]], str],
    ) -> None:
        """`value_rule`: the rule of a schema, given a name; `literal`: JSON text as the grammar has it;
        `string_rule`: the rule of strings other than these."""
        self._value_rule, self._add_rule = value_rule, add_rule
        self._literal, self._string_rule = literal, string_rule

    def body(self, schemas: list[dict[str, Any]], name: str) -> str:
        """Raises ValueError."""
        root = _Node()
        for schema in schemas:
            self._plant(root, schema, name)
        for node in reversed(_within(root)):  # first what comes last, so that nothing calls itself
            node.can_end |= any(
                may_go and after.can_end
                for values in node.keys.values()
                for (_, may_go), after in values.items()
            )
            if (node.keys or node.others) and (_only(node) is None or node.can_end):
                node.rule = self._add_rule(_joined(name, "rest"), self._some(node, name))
        return f'"{{"{_SPACE}' + self._rest(root, name, is_first=True)

    def _plant(self, node: _Node, schema: dict[str, Any], name: str) -> None:
        properties, required = _properties(schema), set(_required(schema))
        others = schema.get("additionalProperties", "properties" not in schema)
        for key in required - properties.keys():
            if schema.get("additionalProperties") is False:
                raise ValueError(f"the property {key!r} is required and not allowed")
            properties[key] = {} if others is False else others
        order = [each for each in properties if each in required]
        optional = [each for each in properties if each not in required and properties[each] is not False]
        if len(optional) > MAX_OPTIONAL:
            raise ValueError(f"an object has more than {MAX_OPTIONAL} properties that may be left out")
        for key in [*order, *optional]:
            value = self._value_rule(properties[key], _joined(name, key))
            node = node.keys.setdefault(key, {}).setdefault((value, key not in required), _Node())
        node.can_end = True
        if others is not False:
            rule = self._other(others, properties, name)
            if rule not in node.others:
                node.others.append(rule)

    def _other(self, schema: Any, properties: Iterable[str], name: str) -> str:
        value = self._value_rule(schema, _joined(name, "additional-value"))
        key = self._string_rule(properties)
        return self._add_rule(_joined(name, "additional-kv"), f'{key} ":"{_SPACE}{value}')

    def _rest(self, node: _Node, name: str, *, is_first: bool) -> str:
        """What comes after a property, or after the brace."""
        parts: list[str] = []
        comma = "" if is_first else f'","{_SPACE}'
        while not node.rule and (single := _only(node)) is not None:
            key, value, node = single
            parts.append(comma + self._pair(key, value, name))
            comma = f'","{_SPACE}'
        if not node.rule:
            parts.append('"}" space')
        else:
            parts.append(f'( {comma}{node.rule} | "}}" space )' if node.can_end else comma + node.rule)
        return " ".join(parts)

    def _some(self, node: _Node, name: str) -> str:
        """One further property or more, and the end."""
        ways = []
        for key, values in node.keys.items():
            rests = [(value, self._rest(node, name, is_first=False)) for (value, _), node in values.items()]
            if len(rests) == 1:
                ways.append(f"{self._pair(key, rests[0][0], name)} {rests[0][1]}")
            else:
                either = " | ".join(f"{value} {rest}" for value, rest in rests)
                ways.append(f"{self._key(key)} ( {either} )")
            ways += [after.rule for (_, may_go), after in values.items() if may_go and after.rule]
        ways += [f'{other} ( ","{_SPACE}{other} )* "}}" space' for other in node.others]
        return " | ".join(ways)

    def _pair(self, key: str, value: str, name: str) -> str:
        return self._add_rule(_joined(name, f"{key}-kv"), f"{self._key(key)} {value}")

    def _key(self, key: str) -> str:
        return f'{self._literal(json.dumps(key, ensure_ascii=False))}{_SPACE}":" space'


def _within(root: _Node) -> list[_Node]:
    """All nodes, each before those after it."""
    nodes = [root]
    for node in nodes:
        nodes += [after for values in node.keys.values() for after in values.values()]
    return nodes


def _only(node: _Node) -> tuple[str, str, _Node] | None:
    """The next property, where nothing else may come."""
    if len(node.keys) != 1 or node.others:
        return None
    ((key, values),) = node.keys.items()
    if len(values) != 1:
        return None
    (((value, may_go), after),) = values.items()
    return None if may_go else (key, value, after)


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    found = schema.get("properties", {})
    if not isinstance(found, dict):
        raise ValueError(f"properties is {json.dumps(found)[:80]}, not an object")
    return dict(found)


def _required(schema: dict[str, Any]) -> list[str]:
    """In draft 3 a property says of itself that it is required: that is let go."""
    found = schema.get("required", [])
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _joined(name: str, part: str) -> str:
    return f"{name}-{part}" if name else part
