"""The reference of the config, made from its typed fields.

    python -m ray_jobs.config_reference [--write FILE]

A field's documentation is the string beneath it in the source; type, default and bounds are pydantic's.
"""

import ast
import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ray_jobs.runs import write_whole

HEADER = """# Configuration

A run is one YAML file. Unknown fields, wrong types and values out of bounds are refused by name, all at
once, before anything starts. Any field can be changed on the command line: `--set search.num_trials=8`.

This page is made from the typed config (`ray_jobs/config.py`) and checked by a test.
"""


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside a field's annotation, optional or not; None for a plain value."""
    candidates = (annotation, *typing.get_args(annotation))
    return next((item for item in candidates if inspect.isclass(item) and issubclass(item, BaseModel)), None)


def leaf_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields that hold no further section."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None or not _is_plain_section(field.annotation):
            yield prefix + name
        else:
            yield from leaf_fields(inner, f"{prefix}{name}.")


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string that stands beneath it in the source, in one paragraph; inherited ones too."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            texts |= _own_texts(base)
    return texts


@cache
def _own_texts(model: type[BaseModel]) -> dict[str, str]:
    (body,) = (node for node in ast.parse(textwrap.dedent(inspect.getsource(model))).body)
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, following in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            texts[field.target.id] = " ".join(str(following.value.value).split())
    return texts


def reference(model: type[BaseModel]) -> str:
    """The page, in Markdown."""
    return HEADER + "".join(f"\n{section}" for section in _sections(model, ""))


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    schema = model.model_json_schema()
    title = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
    lines = [f"## {title}", "", inspect.cleandoc(model.__doc__ or ""), ""]
    rows, inner = [], []
    for name, field in model.model_fields.items():
        text = field_texts(model).get(name, "")
        if (section := section_of(field.annotation)) is not None and _is_plain_section(field.annotation):
            inner.append((name, section))
            link = _anchor(prefix + name)
            default = "required" if field.is_required() else ("off" if field.default is None else "")
            rows.append((f"[`{name}`](#{link})", "section", default, text or _first_sentence(section)))
        else:
            kind = _kind(schema["properties"][name], schema.get("$defs", {}))
            rows.append((f"`{name}`", kind, _default(field), text))
            if section is not None:
                inner.append((f"{name}.*", section))
    lines += ["| field | type | default | |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    yield "\n".join(lines) + "\n"
    for name, section in inner:
        yield from _sections(section, f"{prefix}{name}.")


def _first_sentence(section: type[BaseModel]) -> str:
    text = " ".join(inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".") + "."


def _is_plain_section(annotation: Any) -> bool:
    """A section or null; false for a mapping or a list of sections."""
    return typing.get_origin(annotation) not in (dict, list, tuple)


def _anchor(dotted: str) -> str:
    """The heading's anchor, as Python-Markdown makes it."""
    return re.sub(r"[^\w\- ]", "", dotted.lower())


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return ""
    value = field.default
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def _kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _kind(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return " or ".join(_kind(option, definitions) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"list of {_kind(items, definitions)}" if items else "list"
    if schema.get("type") == "object" and "properties" in schema:
        return "section"
    return _bounded(schema)


_NAMES = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}


def _bounded(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "any")
    name = _NAMES.get(kind, kind)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f"{name} {', '.join(bounds)}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    from ray_jobs.config import Config

    page = reference(Config)
    if sys.argv[1:2] == ["--write"]:
        write_whole(Path(sys.argv[2]), page.encode())
    else:
        sys.stdout.write(page)


if __name__ == "__main__":
    main()
