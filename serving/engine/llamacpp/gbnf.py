"""llama.cpp's grammars (GBNF), read as its own parser reads them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

END = -1
"""Of an alternative."""
_MAX_COPIES = 2
"""Of what is repeated a given number of times: how often is of no matter to what grows without bound."""
_MAX_REPETITIONS = 2000
"""llama.cpp's own limit."""

_TOKEN = re.compile(
    r"""
      (?P<literal>"(?:[^"\\]|\\.)*")
    | (?P<name>[a-zA-Z0-9-]+)
    | (?P<class>\[(?:[^\]\\]|\\.)*\])
    | (?P<repeat>\{(?:[ \t]|[0-9]|,)*\})
    | (?P<token>!?<[^>]*>)
    | (?P<is>::=)
    | (?P<mark>[.|()*+?])
    | (?P<line>[\r\n])
    | (?P<space>[ \t]+|\#[^\r\n]*)
    """,
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([tnr\\\"\[\]-]))|([^\\])", re.DOTALL
)
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r"}
_LAST_CHARACTER = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]


@dataclass
class Grammar:
    """Rules as one list of codes: a rule's number, the complement of a set of characters' number, or END."""

    codes: list[int] = field(default_factory=list)
    starts: list[list[int]] = field(default_factory=list)
    """Of each rule: where its alternatives begin in `codes`."""
    names: list[str] = field(default_factory=list)
    """Of each rule; parts of a rule bear its name."""
    masks: list[int] = field(default_factory=list)
    """Of each set of characters: a bit for each smallest range between which the grammar tells apart."""
    root: int = 0


def parse(text: str) -> Grammar:
    """Raises ValueError, saying what is wrong, for what llama.cpp would not compile."""
    return _Parser(text).parsed()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._grammar = Grammar()
        self._numbers: dict[str, int] = {}
        self._sets: dict[object, int] = {}

    def parsed(self) -> Grammar:
        self._skip_lines()
        while self._at < len(self._tokens) - 1:
            self._rule()
            self._skip_lines()
        grammar = self._grammar
        for name, number in self._numbers.items():
            if not grammar.starts[number]:
                raise ValueError(f"the rule {name!r} is not defined")
        if "root" not in self._numbers:
            raise ValueError("there is no `root` rule")
        grammar.root = self._numbers["root"]
        grammar.masks = _masks(self._sets)
        return grammar

    def _rule(self) -> None:
        name = self._take("name", "a rule's name")
        self._take("is", "::= after a rule's name")
        number = self._number(name)
        alternatives = self._alternatives(name, nested=False)
        if self._tokens[self._at][0] not in ("line", "end"):
            raise ValueError(f"{self._tokens[self._at][1]!r} is not expected in the rule {name!r}")
        self._define(number, alternatives)

    def _alternatives(self, name: str, *, nested: bool) -> list[list[int]]:
        self._skip_lines()
        found = [self._sequence(name, nested=nested)]
        while self._tokens[self._at] == ("mark", "|"):
            self._at += 1
            self._skip_lines()
            found.append(self._sequence(name, nested=nested))
        return found

    def _sequence(self, name: str, *, nested: bool) -> list[int]:
        codes: list[int] = []
        last = 0
        while True:
            kind, text = self._tokens[self._at]
            if kind == "line" and nested:
                self._at += 1
            elif kind == "repeat" or (kind == "mark" and text in "*+?"):
                if last == len(codes):
                    raise ValueError(f"{text!r} repeats nothing in the rule {name!r}")
                self._at += 1
                codes[last:] = self._repeated(codes[last:], name, *_bounds(text))
            elif kind in ("end", "line", "is") or text in ("|", ")"):
                return codes
            else:
                last = len(codes)
                self._at += 1
                codes += self._item(kind, text, name)

    def _item(self, kind: str, text: str, name: str) -> list[int]:
        if kind == "literal":
            return [self._set(((each, each),)) for each in map(ord, _characters(text[1:-1]))]
        if kind == "name":
            return [self._number(text)]
        if kind == "class":
            return self._class(text[1:-1])
        if kind == "token":  # stands for itself alone: no text is a token's number
            return [self._set(((0, _LAST_CHARACTER),) if text.startswith("!") else text)]
        if text == ".":
            return [self._set(((0, _LAST_CHARACTER),))]
        group = self._new_rule(name)  # "("
        self._define(group, self._alternatives(name, nested=True))
        if self._tokens[self._at] != ("mark", ")"):
            raise ValueError(f"a parenthesis is not closed in the rule {name!r}")
        self._at += 1
        return [group]

    def _class(self, text: str) -> list[int]:
        negated = text.startswith("^")
        ranges = tuple(_ranges(text.removeprefix("^")))
        return [self._set(_complement(ranges) if negated else ranges)] if ranges else []

    def _repeated(self, codes: list[int], name: str, least: int, most: int | None) -> list[int]:
        """Its copies, then a rule for those that may be left out, each within the one before."""
        if max(least, most or 0) > _MAX_REPETITIONS:
            raise ValueError(f"more than {_MAX_REPETITIONS} repetitions in the rule {name!r}")
        if most is None:
            rest = self._new_rule(name)
            self._define(rest, [[*codes, rest], []])
            return [*codes * min(least, _MAX_COPIES), rest]
        optional: list[int] = []
        for _ in range(min(most - least, _MAX_COPIES)):
            rest = self._new_rule(name)
            self._define(rest, [[*codes, *optional], []])
            optional = [rest]
        return [*codes * min(least, _MAX_COPIES), *optional]

    def _define(self, number: int, alternatives: list[list[int]]) -> None:
        grammar = self._grammar
        grammar.starts[number] = []
        for codes in alternatives:
            grammar.starts[number].append(len(grammar.codes))
            grammar.codes += [*codes, END]

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new_rule(name)
        return self._numbers[name]

    def _new_rule(self, name: str) -> int:
        self._grammar.starts.append([])
        self._grammar.names.append(name)
        return len(self._grammar.names) - 1

    def _set(self, ranges: object) -> int:
        return -2 - self._sets.setdefault(ranges, len(self._sets))

    def _skip_lines(self) -> None:
        while self._tokens[self._at][0] == "line":
            self._at += 1

    def _take(self, kind: str, what: str) -> str:
        found, text = self._tokens[self._at]
        if found != kind:
            raise ValueError(f"there is no {what} at {text[:20]!r}" if text else f"there is no {what}")
        self._at += 1
        return text


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"it cannot be read at {text[at : at + 20]!r}")
        at = match.end()
        kind = match.lastgroup or ""
        if kind != "space":
            yield kind, match[0]
    yield "end", ""


def _characters(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        code, at = _character(text, at)
        yield chr(code)


def _ranges(text: str) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(text):
        first, at = _character(text, at)
        last = first
        if text[at : at + 1] == "-" and at + 1 < len(text):
            last, at = _character(text, at + 1)
        yield first, last


def _character(text: str, at: int) -> tuple[int, int]:
    """The number of the character that stands there, maybe as an escape, and where the next one begins."""
    match = _CHARACTER.match(text, at)
    if match is None:
        raise ValueError(f"an escape cannot be read at {text[at : at + 10]!r}")
    if code := match[1] or match[2] or match[3]:
        if int(code, 16) > _LAST_CHARACTER:
            raise ValueError(f"there is no character {code}")
        return int(code, 16), match.end()
    return ord(_ESCAPES.get(match[4], match[4] or match[5])), match.end()


def _complement(ranges: Ranges) -> Ranges:
    found, at = [], 0
    for first, last in sorted(ranges):
        if first > at:
            found.append((at, first - 1))
        at = max(at, last + 1)
    return (*found, (at, _LAST_CHARACTER)) if at <= _LAST_CHARACTER else tuple(found)


def _bounds(text: str) -> tuple[int, int | None]:
    if not text.startswith("{"):
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
    match = re.fullmatch(r"\{\s*(\d{1,9})\s*(?:(,)\s*(\d{1,9})?\s*)?\}", text)
    if match is None:
        raise ValueError(f"{text} is no number of repetitions")
    least = int(match[1])
    return (least, int(match[3]) if match[3] else None) if match[2] else (least, least)


def _masks(sets: Iterable[object]) -> list[int]:
    """Texts among the sets are tokens: each is like a character of its own."""
    sets = list(sets)
    ranges = [each if isinstance(each, tuple) else () for each in sets]
    edges = sorted({edge for each in ranges for first, last in each for edge in (first, last + 1)})
    at = {edge: bisect_left(edges, edge) for edge in edges}
    masks = [sum_of((1 << at[last + 1]) - (1 << at[first]) for first, last in each) for each in ranges]
    for extra, each in enumerate(sets):
        if not isinstance(each, tuple):
            masks[extra] = 1 << (len(edges) + extra)
    return masks


def sum_of(masks: Iterable[int]) -> int:
    """What is in one of them."""
    found = 0
    for mask in masks:
        found |= mask
    return found
