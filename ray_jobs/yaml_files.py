"""YAML that people write by hand, read strictly.

Duplicate keys, aliases and language tags are refused; `1e-4` is a number, `off` a word, `010` ten and
`2026-11-26` text, as every reader expects (YAML 1.1 would make them a string, false, eight and a date).
Source of the grammar: YAML 1.2, section 10.3.2; `1_000` is taken as a number too.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ray_jobs.errors import ConfigError

MAX_BYTES = 1_000_000


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "")
        bases = {"0x": 16, "0o": 8}
        return int(digits, bases.get(digits[:2], 10))


_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": (
        "-+0123456789.",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
}
"""What may begin a scalar of a kind, and all of it; `int` is tried before `float`."""
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_first, _pattern) in _SCALARS.items():
    _StrictLoader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))
_StrictLoader.add_constructor(f"{_TAG}int", _StrictLoader.construct_int)


def read_yaml(path: Path) -> Any:
    """The document in `path` as plain Python values.

    Raises ConfigError, in one line with the file and the line number, when the file is missing, too
    large, not UTF-8, or not one plain YAML document.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(data)} bytes; a config has at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> Any:
    """The one plain document in `text`. Raises ConfigError, in one line that starts with `origin`."""
    try:
        return yaml.load(text, _StrictLoader)
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: {_one_line(error)}") from error
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{origin}: {error}") from error


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)
