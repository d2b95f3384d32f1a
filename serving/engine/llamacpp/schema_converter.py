"""From the plain forms of a JSON schema to the rules of a grammar.

Names, literals of types and formats, and regular expressions are as llama-cpp-python's converter has them
(0.3.36).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from itertools import count
from typing import Any

from llama_cpp.llama_grammar import (
    INVALID_RULE_CHARS_RE,
    PRIMITIVE_RULES,
    RESERVED_NAMES,
    STRING_FORMAT_RULES,
    BuiltinRule,
    SchemaConverter,
)

from serving.engine.llamacpp.json_schema import MAX_COUNT
from serving.engine.llamacpp.schema_forms import Forms, Schema, canonical, is_free, without_covered
from serving.engine.llamacpp.schema_objects import Objects
from serving.engine.llamacpp.schema_strings import one_of, other_than
from serving.engine.llamacpp.whole_numbers import whole_numbers

_ESCAPE = r'"\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})'
_OWN_RULES = {
    "char": r'[^"\\\x7F\x00-\x1F] | ' + _ESCAPE,  # no raw control characters (RFC 8259, section 7)
    "integral-part": '"0" | [1-9] [0-9]{0,15}',
    "decimal-part": "[0-9]{1,16}",
}
_UUID = re.compile(r"uuid[1-5]?")


class Converter(SchemaConverter):
    """Literals are the JSON that they are meant to be, and each definition has a rule of its own."""

    def __init__(self, schema: Any) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._schema = schema
        self._forms = Forms(schema)
        self._objects = Objects(self._rule, self._add_rule, self._literal, self._other_strings)
        self._definitions: dict[str, str] = {}
        self._known: dict[str, str] = {}
        """Schemas as JSON -> their rules: equal ones share one, so that they are one way to go on."""
        self._numbers: dict[str, int] = {}

    def grammar(self) -> str:
        """Raises ValueError, KeyError, TypeError and the like for what is no schema."""
        self._rules["root"] = ""
        self._rules["root"] = self._body(self._forms.alternatives(canonical(self._schema)), "")
        return str(self.format_grammar())

    def _rule(self, schema: Any, name: str) -> str:
        schema = canonical(schema)
        text = json.dumps(schema)
        if text not in self._known:
            forms = self._forms.alternatives(schema)
            rule = self._shared_rule(forms[0]) if len(forms) == 1 else None
            if rule is None:
                rule = self._add_rule(f"{name}-" if name in RESERVED_NAMES else name, self._body(forms, name))
            self._known[text] = rule
        return self._known[text]

    def _shared_rule(self, form: Schema) -> str | None:
        """The rule of a form that has the same one wherever it stands."""
        if "$ref" in form:
            return self._definition(form["$ref"])
        if form.get("type") != "object" and is_free(form):
            return self._builtin(form.get("type", "value"))
        return None

    def _body(self, forms: list[Schema], name: str) -> str:
        """Alternatives: objects among them are one, and so are values."""
        forms = without_covered(self._objects_opened(forms))
        ways = []
        objects = [form for form in forms if form.get("type") == "object"]
        values = [value for form in forms for value in form.get("values", ())]
        for form in forms:
            if form.get("type") == "object":
                if form is objects[0]:
                    ways.append(self._object(objects, name))
            elif "values" in form:
                if values:
                    ways.append(one_of([_json(value) for value in values], self._literal))
                    values = []
            else:
                ways.append(self._shared_rule(form) or self._way(form, name))
        return " | ".join(ways)

    def _objects_opened(self, forms: list[Schema]) -> list[Schema]:
        """References to objects are followed where there are several, so that these are read as one."""
        if len(forms) == 1:
            return forms
        opened = [self._forms.expanded(form) for form in forms]
        if sum(form.get("type") == "object" for each in opened for form in each) < 2:
            return forms
        found = []
        for form, inside in zip(forms, opened, strict=True):
            has_object = any(each.get("type") == "object" for each in inside)
            found += inside if has_object or not inside else [form]
        return list({json.dumps(form): form for form in found}.values())

    def _object(self, forms: list[Schema], name: str) -> str:
        if all(map(is_free, forms)):
            return self._builtin("object")
        return self._objects.body([canonical(form) for form in forms], name)

    def _way(self, form: Schema, name: str) -> str:
        kind = form["type"]
        if kind == "array":
            return self._array(form, f"{name}-" if name else "")
        if kind == "string":
            return self._string(form, name)
        low, high = _bounds(form)
        if (low, high) == (None, None):
            return self._builtin("integer")
        return f"({whole_numbers(low, high)}) space"

    def _array(self, form: Schema, prefix: str) -> str:
        items = form.get("prefixItems", form.get("items", {}))
        if isinstance(items, list):
            rules = [self._rule(item, f"{prefix}tuple-{index}") for index, item in enumerate(items)]
            return '"[" space ' + ' "," space '.join(rules) + ' "]" space'
        least, most = _counts(form, "minItems", "maxItems")
        if most == 0 or items is False:
            return '"[" space "]" space'
        rule = self._rule(items, f"{prefix}item")
        again = _times(max(least - 1, 0), None if most is None else most - 1)
        some = f'{rule} ("," space {rule}){again}' if again != "{0}" else rule
        return f'"[" space {some if least else f"({some})?"} "]" space'

    def _string(self, form: Schema, name: str) -> str:
        wanted = form.get("format") or ""
        if "pattern" in form:
            return str(self._visit_pattern(form["pattern"], f"{name or 'root'}-pattern"))
        if _UUID.fullmatch(wanted):
            return self._builtin("uuid")
        if f"{wanted}-string" in STRING_FORMAT_RULES:
            return str(self._add_primitive(f"{wanted}-string", STRING_FORMAT_RULES[f"{wanted}-string"]))
        self._builtin("string")
        least, most = _counts(form, "minLength", "maxLength")
        return f'"\\"" char{_times(least, most)} "\\"" space'

    def _other_strings(self, names: Iterable[str]) -> str:
        rule, names = self._builtin("string"), list(names)
        if not names:
            return rule
        return self._add_rule("other-string", other_than(names, self._add_rule("escape", _ESCAPE)))

    def _definition(self, reference: str) -> str:
        if reference not in self._definitions:
            last = INVALID_RULE_CHARS_RE.sub("-", reference.rpartition("/")[2])
            names = (f"definition-{number}-{last}" for number in count(len(self._definitions)))
            name = self._definitions[reference] = next(each for each in names if each not in self._rules)
            self._rules[name] = ""  # taken: what refers to it from within goes there
            forms = self._forms.alternatives(self._forms.resolve(reference))
            self._rules[name] = self._body(forms, name)
        return self._definitions[reference]

    def _builtin(self, name: str) -> str:
        return str(self._add_primitive(name, PRIMITIVE_RULES[name]))

    def _add_primitive(self, name: str, rule: BuiltinRule) -> str:
        if name in _OWN_RULES:
            rule = BuiltinRule(_OWN_RULES[name], [])
        return str(super()._add_primitive(name, rule))

    def _add_rule(self, name: str, rule: str) -> str:
        """Under this name, or one like it where that is another's."""
        name = INVALID_RULE_CHARS_RE.sub("-", name)
        key = name
        while self._rules.get(key, rule) != rule:
            number = self._numbers.get(name, 0)
            self._numbers[name] = number + 1
            key = f"{name}{number}"
        self._rules[key] = rule
        return key

    def _literal(self, text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\n", "\\n")
        return f'"{escaped}"'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _counts(form: Schema, least_key: str, most_key: str) -> tuple[int, int | None]:
    """Raises ValueError for those that nothing fulfils, or above the limit."""
    least, most = form.get(least_key) or 0, form.get(most_key)
    for key, number in ((least_key, least), (most_key, most)):
        if number is not None and (isinstance(number, bool) or number != int(number) or number < 0):
            raise ValueError(f"{key} is {number}, not a whole number")
        if number is not None and number > MAX_COUNT:
            raise ValueError(f"{key} must not be above {MAX_COUNT}")
    if most is not None and least > most:
        raise ValueError(f"{least_key} is {least}, above {most_key}, which is {most}")
    return int(least), None if most is None else int(most)


def _times(least: int, most: int | None) -> str:
    """How often something is repeated, as a grammar has it."""
    if most is None:
        return "*" if least == 0 else f"{{{least},}}"
    return f"{{{least}}}" if least == most else f"{{{least},{most}}}"


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
