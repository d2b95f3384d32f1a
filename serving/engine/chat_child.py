"""Renders a model's chat template in a process of its own. Run as a script, with JSON lines on its pipes.

A template comes with a model file and is a program. The sandbox keeps it from Python's internals, but not
from running for ever or filling the memory; a process can be ended at a time limit and given a memory limit.
This file imports nothing of the project, so that it starts fast.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MEMORY_LIMIT_BYTES = 1 << 30
OUTPUT_LIMIT_CHARACTERS = 1 << 26


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; when prompting it stands for its
    content."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment.from_string(source)


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    parts: list[str] = []
    size = 0
    for part in template.generate(**variables):
        size += len(part)
        if size > OUTPUT_LIMIT_CHARACTERS:
            raise MemoryError(f"more than {OUTPUT_LIMIT_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not POSIX: the time limit and the output limit remain
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


def _answer(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def _serve() -> None:
    """First line: the template. Each further line: variables. A reply has `text`, or `error` and whose
    `fault`."""
    _limit_memory()
    try:
        template = _compile(json.loads(sys.stdin.readline()))
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        _answer({"error": f"{type(error).__name__}: {error}", "fault": "template"})
        return
    _answer({"text": ""})
    for line in sys.stdin:
        try:
            _answer({"text": _render(template, json.loads(line))})
        except (jinja2.exceptions.SecurityError, RecursionError, MemoryError) as error:
            _answer({"error": f"{type(error).__name__}: {error}", "fault": "template"})
        except Exception as error:  # whatever a template does with these messages
            _answer({"error": f"{type(error).__name__}: {error}"[:500], "fault": "messages"})


if __name__ == "__main__":
    _serve()
