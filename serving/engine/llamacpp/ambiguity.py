"""Whether a grammar can be followed in a small number of ways at once.

llama.cpp keeps every way in which what was written can have come about, each with all that it would go on
with, and compares each with all others. An object that may hold itself in two ways that begin alike doubles
them at each level: after ten levels a token takes seconds, and nothing ends it.

The search follows the grammar as llama.cpp does, the texts with most ways first. Of texts after which the
grammar goes on alike (the innermost positions are the same, and about as many ways are open) it follows one:
that ends it for all grammars but those of which the ways multiply. What a single character tells apart
throughout (most of JSON) is not followed at all.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator

from serving.engine.llamacpp.gbnf import END, Grammar, parse, sum_of
from serving.engine.llamacpp.grammar_facts import AmbiguousGrammar, Facts

_MAX_WAYS = 1000
"""An object of 256 properties that may all be left out has so many less a few; each costs every token."""
_MAX_STEPS = 150_000
_DEPTH = 2
"""Innermost positions by which texts are taken for alike."""
_MAX_TEXT = 64
"""Characters in which texts are told apart at once."""
_EMPTY = -1
"""The stack of what has ended."""


@functools.lru_cache(maxsize=128)
def check_ways(text: str) -> None:
    """Raises ValueError for a grammar that llama.cpp would not compile; AmbiguousGrammar for one of which the
    ways multiply."""
    grammar = parse(text)
    facts = Facts(grammar)
    if not facts.is_plain[grammar.root]:
        _Search(grammar, facts).run()


class _Search:
    """Stacks as llama.cpp has them, innermost position last, each kept once: numbers of (position, rest)."""

    def __init__(self, grammar: Grammar, facts: Facts) -> None:
        self._grammar = grammar
        self._rule_at = _rules_by_position(grammar)
        self._is_plain = facts.is_plain
        self._numbers: dict[tuple[int, int], int] = {}
        self._parts: list[tuple[int, int]] = []
        self._tops: list[tuple[int, ...]] = []
        self._opened: dict[int, tuple[int, ...]] = {_EMPTY: (_EMPTY,)}
        self._texts: dict[int, tuple[int, ...]] = {}
        self._alone: set[int] = set()
        self._followed: dict[int, frozenset[int]] = {}
        """Of each stack: what it was followed with; a part of that leads to nothing new."""
        self._steps = 0

    def run(self) -> None:
        """Raises AmbiguousGrammar."""
        begun = [self._stack(start, _EMPTY) for start in self._grammar.starts[self._grammar.root]]
        queue: list[tuple[int, int, frozenset[int]]] = []
        seen: set[object] = set()
        self._push(self._open_all(begun), queue, seen)
        while queue:
            ways = heapq.heappop(queue)[2]
            for next_ways in self._after(ways):
                self._push(next_ways, queue, seen)

    def _push(
        self, ways: frozenset[int], queue: list[tuple[int, int, frozenset[int]]], seen: set[object]
    ) -> None:
        if len(ways) > _MAX_WAYS:
            raise AmbiguousGrammar(self._most_open(ways))
        if not ways or ways <= self._followed.get(next(iter(ways)), frozenset()):
            return
        self._followed.update(dict.fromkeys(ways, ways))
        tops = frozenset(self._tops[each] for each in ways if each != _EMPTY)
        alike = (tops, round(8 * math.log(len(ways) or 1)))
        if tops and alike not in seen:
            seen.add(alike)
            heapq.heappush(queue, (-len(ways), len(seen), ways))

    def _after(self, ways: frozenset[int]) -> Iterator[frozenset[int]]:
        """What is open after each character that leads to different ways."""
        self._count(len(ways))
        if (texts := self._by_text(ways)) is not None:
            yield from (self._open_all([each]) for each in texts if each not in self._alone)
            self._alone.update(texts)
            return
        by_mask: dict[int, list[int]] = {}
        for each in ways:
            if each != _EMPTY:
                mask = self._grammar.masks[-2 - self._grammar.codes[self._parts[each][0]]]
                by_mask.setdefault(mask, []).append(each)
        for chosen in _told_apart(by_mask):
            if len(chosen) == 1 and self._is_plain[self._rule_at[self._parts[chosen[0]][0]]]:
                yield self._open_all([self._after_plain(chosen[0])])
            else:
                yield self._open_all([self._beyond(each) for each in chosen])

    def _by_text(self, ways: frozenset[int]) -> list[int] | None:
        """Several that each go on with a certain text, none of which begins with another: what is after
        these."""
        if len(ways) < 2 or _EMPTY in ways:
            return None
        texts = sorted((self._text_at(self._parts[each][0]), each) for each in ways)
        for (one, _), (other, _) in itertools.pairwise(texts):
            if not one or other[: len(one)] == one:
                return None
        return [self._stack(self._parts[each][0] + len(text), self._parts[each][1]) for text, each in texts]

    def _text_at(self, position: int) -> tuple[int, ...]:
        if position not in self._texts:
            end = position
            while end < position + _MAX_TEXT and self._is_character(self._grammar.codes[end]):
                end += 1
            self._texts[position] = tuple(self._grammar.codes[position:end])
        return self._texts[position]

    def _is_character(self, code: int) -> bool:
        return code < END and self._grammar.masks[-2 - code].bit_count() == 1

    def _after_plain(self, way: int) -> int:
        """Where it goes on once all plain rules that are open have ended: within these it is the only one."""
        while way != _EMPTY and self._is_plain[self._rule_at[self._parts[way][0]]]:
            way = self._parts[way][1]
        return way

    def _open_all(self, ways: Iterable[int]) -> frozenset[int]:
        found: set[int] = set()
        for each in ways:
            found.update(self._open(each))
        self._count(len(found))
        return frozenset(found)

    def _open(self, way: int) -> tuple[int, ...]:
        """The stacks at characters that this one leads to."""
        todo = [way]
        while todo:
            each = todo.pop()
            if each in self._opened:
                continue
            self._count(1)
            if self._grammar.codes[self._parts[each][0]] < END:
                self._opened[each] = (each,)
                continue
            within = self._entered(each)
            if left := [inner for inner in within if inner not in self._opened]:
                todo += [each, *left]
                continue
            found = tuple(dict.fromkeys(itertools.chain.from_iterable(map(self._opened.__getitem__, within))))
            if len(found) > _MAX_WAYS:
                raise AmbiguousGrammar(self._most_open(found))
            self._opened[each] = found
        return self._opened[way]

    def _entered(self, way: int) -> list[int]:
        """One for each alternative of the rule at its top."""
        rest = self._beyond(way)
        codes = self._grammar.codes
        starts = self._grammar.starts[codes[self._parts[way][0]]]
        return [rest if codes[start] == END else self._stack(start, rest) for start in starts]

    def _beyond(self, way: int) -> int:
        position, rest = self._parts[way]
        return rest if self._grammar.codes[position + 1] == END else self._stack(position + 1, rest)

    def _stack(self, position: int, rest: int) -> int:
        if self._grammar.codes[position] == END:
            return rest
        number = self._numbers.get((position, rest))
        if number is None:
            number = self._numbers[position, rest] = len(self._parts)
            self._parts.append((position, rest))
            below = self._tops[rest] if rest != _EMPTY else ()
            self._tops.append((position, *below[: _DEPTH - 1]))
        return number

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise ValueError("it has too many alternatives that begin alike")

    def _most_open(self, ways: Iterable[int]) -> str:
        way = max(ways)  # a young stack is a long one
        count: dict[str, int] = {}
        while way != _EMPTY:
            position, way = self._parts[way]
            name = self._grammar.names[self._rule_at[position]]
            count[name] = count.get(name, 0) + 1
        return max(count, key=lambda name: count[name], default="root")


def _told_apart(by_mask: dict[int, list[int]]) -> Iterator[list[int]]:
    """Of stacks by the characters at their tops: those that go on together after some character."""
    left = sum_of(by_mask)
    if sum(mask.bit_count() for mask in by_mask) == left.bit_count():
        yield from by_mask.values()
        return
    while left:
        character = left & -left
        alike = left
        chosen: list[int] = []
        for mask, stacks in by_mask.items():
            if mask & character:
                alike &= mask
                chosen += stacks
            else:
                alike &= ~mask
        left &= ~alike
        yield chosen


def _rules_by_position(grammar: Grammar) -> list[int]:
    rule_at = [0] * len(grammar.codes)
    for rule, starts in enumerate(grammar.starts):
        for at in starts:
            while grammar.codes[at] != END:
                rule_at[at] = rule
                at += 1
    return rule_at
