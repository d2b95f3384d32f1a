"""What a JSON schema allows, as a list of plain schemas: each of one type, of given values, or a reference.

`anyOf`, `oneOf`, `allOf`, lists of types and boolean schemas are gone from these; what stands beside an
`anyOf` holds for each of its alternatives. Keywords that no grammar says well are let go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]
_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": (),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
_HINTS = tuple(_OF_TYPE.items())
"""A schema without a type has that of which it says something, the first of these."""
_SAID = frozenset({"type", "enum", "const", *(key for keys in _OF_TYPE.values() for key in keys)})
_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems", "items", "additionalProperties"})
_LARGER = frozenset({"minimum", "exclusiveMinimum", "minItems", "minLength"})
_SMALLER = frozenset({"maximum", "exclusiveMaximum", "maxItems", "maxLength"})
_MAX_ALTERNATIVES = 128
_MAX_FOLLOWED = 10_000
"""References, of which each may lead to several others."""


class Forms:
    """The plain forms of the schemas within one."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._num_followed = 0
        self._found: dict[str, Any] = {}

    def resolve(self, reference: str) -> Any:
        """Raises ValueError for a reference that leads to nothing here."""
        if reference not in self._found:
            self._found[reference] = canonical(self._resolved(reference))
        return self._found[reference]

    def _resolved(self, reference: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError(f"the reference {reference!r} does not begin with '#'")
        found = self._root
        for part in reference[1:].split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise ValueError(f"the reference {reference!r} leads to nothing")
        return found

    def alternatives(self, schema: Any) -> list[Schema]:
        """At most one of them is allowed to be equal to another. Raises ValueError if there are none."""
        found = self._alternatives(schema, frozenset())
        if not found:
            raise ValueError(f"nothing is allowed by {json.dumps(schema)[:80]}")
        return _distinct(found)

    def expanded(self, schema: Schema) -> list[Schema]:
        """The same without references; for anything but one, itself."""
        return self._expanded(schema, frozenset())

    def _alternatives(self, schema: Any, within: frozenset[str]) -> list[Schema]:
        if isinstance(schema, bool):
            return [{}] if schema else []
        if not isinstance(schema, dict):
            raise ValueError(f"{json.dumps(schema)[:80]} is no schema")
        plain = {key: value for key, value in schema.items() if key in _SAID}
        groups = [schema[key] for key in ("anyOf", "oneOf") if key in schema]
        groups += [[each] for each in schema.get("allOf", ())]
        groups += [[{"$ref": schema["$ref"]}]] if "$ref" in schema else []
        if not groups:
            return _by_type(plain)
        if len(groups) == 1 and not plain:
            if "$ref" in schema:
                return [{"$ref": schema["$ref"]}]
            return [form for each in groups[0] for form in self._alternatives(each, within)]
        return self._all_of(plain, groups, within)

    def _all_of(self, plain: Schema, groups: list[list[Any]], within: frozenset[str]) -> list[Schema]:
        found = [plain]
        for group in groups:
            forms = [
                form
                for each in group
                for alternative in self._alternatives(each, within)
                for form in self._expanded(alternative, within)
            ]
            if len(found) * len(forms) > _MAX_ALTERNATIVES:
                raise ValueError(f"more than {_MAX_ALTERNATIVES} alternatives that have to hold together")
            found = [both for one in found for form in forms if (both := _both(one, form)) is not None]
        return [form for each in found for form in _by_type(each)]

    def _expanded(self, schema: Schema, within: frozenset[str]) -> list[Schema]:
        if "$ref" not in schema:
            return [schema]
        if (reference := schema["$ref"]) in within:
            return []
        self._num_followed += 1
        if self._num_followed > _MAX_FOLLOWED:
            raise ValueError(f"references lead to more than {_MAX_FOLLOWED} others")
        inside = within | {reference}
        forms = self._alternatives(self.resolve(reference), inside)
        return [each for form in forms for each in self._expanded(form, inside)]


def is_free(schema: Schema) -> bool:
    """Whether a plain schema allows all that there is of its type."""
    return schema.keys() <= {"type"}


def without_covered(forms: list[Schema]) -> list[Schema]:
    """Without those of which all is allowed by another anyway."""
    if {} in forms:
        return [{}]
    free = {form["type"] for form in forms if "type" in form and is_free(form)}
    implied = {"integer"} if "number" in free else set()
    covered = free | implied
    found = []
    for form in forms:
        if "values" in form:
            left = [value for value in form["values"] if not any(_has_type(value, each) for each in covered)]
            if left:
                found.append({"values": left})
        elif form.get("type") not in covered or (is_free(form) and form["type"] not in implied):
            found.append(form)
    return found


def _distinct(forms: list[Schema]) -> list[Schema]:
    return list({json.dumps(form): form for form in forms}.values())


def _by_type(schema: Schema) -> list[Schema]:
    """A schema of which only types may be several."""
    types = _types(schema)
    if "enum" in schema or "const" in schema:
        values = _values(schema)
        kept = [each for each in values if types is None or any(_has_type(each, name) for name in types)]
        return [{"values": kept}] if kept else []
    if types is None:
        types = [next((name for name, keys in _HINTS if any(key in schema for key in keys)), "")]
    if types == [""]:
        return [{}]
    found = []
    for name in types:
        if name not in _OF_TYPE:
            raise ValueError(f"there is no type {name!r}")
        found.append({"type": name, **{key: schema[key] for key in _OF_TYPE[name] if key in schema}})
    return found


def _types(schema: Schema) -> list[Any] | None:
    wanted = schema.get("type")
    if wanted is None:
        return None
    return wanted if isinstance(wanted, list) else [wanted]


def _values(schema: Schema) -> list[Any]:
    """Of `enum` and `const`, each once."""
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(values, list):
        raise ValueError(f"enum is {json.dumps(values)[:80]}, not a list")
    if "const" in schema:
        values = [each for each in values if _text(each) == _text(schema["const"])]
    return list({_text(each): each for each in values}.values())


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, int | float):
        return name == "number" or (name == "integer" and value == int(value))
    of_class = {str: "string", dict: "object", list: "array", type(None): "null"}
    return of_class[type(value)] == name


def _both(one: Schema, other: Schema) -> Schema | None:
    """What both allow, as a schema of plain keywords; None: nothing."""
    if "values" in other:
        other = {"enum": other["values"]}
    if "values" in one:
        one = {"enum": one["values"]}
    found = {**one, **other}
    for key in one.keys() & other.keys():
        value = _both_say(key, one[key], other[key])
        if value is None:
            return None
        found[key] = value
    return _as_enum(found)


def _as_enum(schema: Schema) -> Schema | None:
    if "enum" not in schema and "const" not in schema:
        return schema
    values = _values(schema)
    rest = {key: value for key, value in schema.items() if key not in ("enum", "const")}
    return {**rest, "enum": values} if values else None


def _both_say(key: str, one: Any, other: Any) -> Any:
    """The two values of a keyword in one; None: nothing fulfils both."""
    if _text(one) == _text(other):
        return one
    if key == "type":
        return _common_types(one, other) or None
    if key == "enum":
        kept = {_text(each) for each in other}
        return [each for each in one if _text(each) in kept] or None
    if key == "const":
        return None
    if key == "properties":
        shared = {name: {"allOf": [one[name], other[name]]} for name in one if name in other}
        return {**one, **other, **shared}
    if key == "required":
        return [*one, *(each for each in other if each not in one)]
    if key in ("items", "additionalProperties"):
        return False if one is False or other is False else {"allOf": [one, other]}
    if (key in _LARGER or key in _SMALLER) and not isinstance(one, bool) and not isinstance(other, bool):
        return max(one, other) if key in _LARGER else min(one, other)
    raise ValueError(f"two values of {key} that have to hold together")


def _common_types(one: Any, other: Any) -> list[str]:
    names = [each if isinstance(each, list) else [each] for each in (one, other)]
    found = [each for each in names[0] if each in names[1] or (each == "integer" and "number" in names[1])]
    if "integer" in names[1] and "number" in names[0] and "integer" not in found:
        found.append("integer")
    return found


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def canonical(schema: Any) -> Any:
    """A schema without what says nothing of values, such as titles, so that equal ones look equal."""
    if not isinstance(schema, dict):
        return schema
    found: Schema = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            found[key] = {name: canonical(each) for name, each in value.items()}
        elif key in _OF_SCHEMAS:
            found[key] = [canonical(each) for each in value] if isinstance(value, list) else canonical(value)
        elif key in _SAID or key == "$ref":
            found[key] = value
    return found
