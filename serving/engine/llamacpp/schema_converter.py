"""llama-cpp-python's converter of JSON schemas, with some of its ways mended (0.3.36)."""

from __future__ import annotations

import json
import math
from itertools import count
from typing import Any

from llama_cpp.llama_grammar import RESERVED_NAMES, BuiltinRule, SchemaConverter

from serving.engine.llamacpp.whole_numbers import whole_numbers

_CHARACTER = BuiltinRule(
    r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])', []
)
"""Of a string: JSON has no raw control characters (RFC 8259, section 7)."""
_SAID_OTHERWISE = frozenset({"$ref", "anyOf", "oneOf", "const", "enum"})


class Converter(SchemaConverter):
    """Literals are the JSON that they are meant to be, and each definition has a rule of its own.

    In its own way a backslash in a literal is taken for one of the grammar's, so that the answer holds a raw
    line break where JSON has `\\n`, and strings hold these, too; a rule is found by the last part of a
    reference, which may be that of another one or of a type (`#/$defs/string`); whole numbers have no bounds.
    """

    def __init__(self) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._rule_of: dict[str, str] = {}

    def visit(self, schema: dict[str, Any], name: str) -> str:
        """The name of the schema's rule."""
        if schema.get("type") == "integer" and not _SAID_OTHERWISE & schema.keys():
            low, high = _bounds(schema)
            if (low, high) != (None, None):
                rule_name = f"{name}-" if name in RESERVED_NAMES else name or "root"
                return str(self._add_rule(rule_name, f"({whole_numbers(low, high)}) space"))
        return str(super().visit(schema, name))

    def _add_primitive(self, name: str, rule: BuiltinRule) -> str:
        return str(super()._add_primitive(name, _CHARACTER if name == "char" else rule))

    def _format_literal(self, literal: str) -> str:
        try:
            text = json.dumps(json.loads(literal), ensure_ascii=False)
        except ValueError:
            text = literal
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\n", "\\n")
        return f'"{escaped}"'

    def _resolve_ref(self, ref: str) -> str:
        if ref not in self._rule_of:
            names = (f"definition-{number}" for number in count())
            name = self._rule_of[ref] = next(each for each in names if each not in self._rules)
            self._rules[name] = ""  # taken: what refers to it from within goes there
            self._rules[name] = self.visit(self._refs[ref], name)
        return self._rule_of[ref]


def _bounds(schema: dict[str, Any]) -> tuple[int | None, int | None]:
    """The least and the largest whole number. Raises TypeError for bounds that are no numbers.

    `exclusiveMinimum` and `exclusiveMaximum` are numbers or, up to draft 4 and in OpenAPI 3.0, say whether
    `minimum` and `maximum` themselves are left out.
    """
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if isinstance(above, bool):
        low, above = (None, low) if above else (low, None)
    if isinstance(below, bool):
        high, below = (None, high) if below else (high, None)
    lows = [
        *([math.ceil(low)] if low is not None else []),
        *([math.floor(above) + 1] if above is not None else []),
    ]
    highs = [
        *([math.floor(high)] if high is not None else []),
        *([math.ceil(below) - 1] if below is not None else []),
    ]
    return max(lows, default=None), min(highs, default=None)
