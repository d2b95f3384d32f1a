"""Sets of texts as grammar rules in which every next character leaves one way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

Literal = Callable[[str], str]
"""A text as the grammar has it."""
_MAX_LETTERS = 64
"""Of a name, by which others are told from it."""
_NO_LETTERS = r'"\\\x7F\x00-\x1F'


def one_of(texts: Iterable[str], literal: Literal) -> str:
    """A rule's body: what several begin with is there once."""
    distinct = list(dict.fromkeys(texts))
    start = _common_start(min(distinct), max(distinct))
    if len(distinct) == 1:
        return literal(start)
    groups: dict[str, list[str]] = {}
    for text in distinct:
        groups.setdefault(text[len(start) : len(start) + 1], []).append(text[len(start) :])
    may_end = groups.pop("", None) is not None
    body = " | ".join(one_of(group, literal) for group in groups.values())
    if start or may_end:
        body = f"({body})" + ("?" if may_end else "")
    return f"{literal(start)} {body}" if start else body


def _common_start(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def other_than(names: Iterable[str], escape: str) -> str:
    """The body of a rule of JSON strings that are none of these; `escape`: the rule of escapes.

    Names with characters that JSON escapes are let go, and ways to write others with escapes.
    """
    tree: dict[str, Any] = {}
    for name in names:
        if json.dumps(name, ensure_ascii=False) == f'"{name}"':
            node = tree
            for character in name[:_MAX_LETTERS]:
                node = node.setdefault(character, {})
            node[""] = {}
    return f'"\\"" {_departing(tree, escape)} "\\"" space'


def _departing(node: dict[str, Any], escape: str) -> str:
    """How strings go on that have followed names up to here."""
    letters = [letter for letter in node if letter]
    if not letters:
        return "char+" if "" in node else "char*"
    ways = [f"{_class(letter)} {_departing(node[letter], escape)}" for letter in letters]
    others = "".join(map(_escaped, letters))
    ways.append(f"([^{_NO_LETTERS}{others}] | {escape}) char*")
    return f"({' | '.join(ways)})" + ("" if "" in node else "?")


def _class(letter: str) -> str:
    return f"[{_escaped(letter)}]" if letter != "^" else '"^"'


def _escaped(letter: str) -> str:
    return f"\\{letter}" if letter in "[]\\-" else letter
