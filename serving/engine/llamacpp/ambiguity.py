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

_MAX_WAYS = 1000
"""An object of 256 properties that may all be left out has so many less a few; each costs every token."""
_MAX_STEPS = 150_000
_MAX_STARTS = 1_000_000
"""Ways into a rule until its first character: llama.cpp walks each when it looks for left recursion."""
_DEPTH = 2
"""Innermost positions by which texts are taken for alike."""
_MAX_TEXT = 64
"""Characters in which texts are told apart at once."""
_EMPTY = -1
"""The stack of what has ended."""


class AmbiguousGrammar(ValueError):
    """`rule`: the one that is open most often."""

    def __init__(self, rule: str) -> None:
        super().__init__(
            f"it is ambiguous: {rule!r} can be read in several ways that begin alike, and these multiply"
        )
        self.rule = rule


@functools.lru_cache(maxsize=128)
def check_ways(text: str) -> None:
    """Raises ValueError for a grammar that llama.cpp would not compile; AmbiguousGrammar for one of which the
    ways multiply."""
    grammar = parse(text)
    facts = _Facts(grammar)
    if not facts.is_plain[grammar.root]:
        _Search(grammar, facts).run()


class _Facts:
    """What holds of rules wherever they stand."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._rules = range(len(grammar.starts))
        self._alternatives = [[_codes(grammar, at) for at in grammar.starts[rule]] for rule in self._rules]
        self._may_be_empty = self._find_empty()
        self._first = self._find_first()
        self.is_plain = self._find_plain(self._find_follow())

    def _find_empty(self) -> list[bool]:
        """Whether a rule may be nothing."""
        empty = [False] * len(self._rules)
        users = _users(self._alternatives)
        todo = list(self._rules)
        while todo:
            rule = todo.pop()
            if not empty[rule] and any(
                all(code >= 0 and empty[code] for code in codes) for codes in self._alternatives[rule]
            ):
                empty[rule] = True
                todo += users[rule]
        return empty

    def _find_first(self) -> list[int]:
        """The characters with which a rule may begin."""
        first = [0] * len(self._rules)
        num_starts = [0] * len(self._rules)
        for rule in self._from_within():
            for codes in self._alternatives[rule]:
                first[rule] |= self._begins(codes, first)
                num_starts[rule] += 1 + sum(num_starts[each] for each in self._leading(codes))
            if num_starts[rule] > _MAX_STARTS:
                raise AmbiguousGrammar(self._grammar.names[rule])
        return first

    def _from_within(self) -> Iterator[int]:
        """Rules after those that they may begin with. Raises ValueError for one that may begin with
        itself."""
        state = [0] * len(self._rules)  # 1: entered, 2: left
        for start in self._rules:
            stack = [start]
            while stack:
                rule = stack[-1]
                if state[rule] == 0:
                    state[rule] = 1
                    within = {each for codes in self._alternatives[rule] for each in self._leading(codes)}
                    if any(state[each] == 1 for each in within):
                        raise ValueError(
                            f"the rule {self._grammar.names[rule]!r} begins with itself (left recursion)"
                        )
                    stack += [each for each in within if state[each] == 0]
                else:
                    stack.pop()
                    if state[rule] == 1:
                        state[rule] = 2
                        yield rule

    def _leading(self, codes: list[int]) -> Iterator[int]:
        """Rules with which this may begin."""
        for code in codes:
            if code < 0:
                return
            yield code
            if not self._may_be_empty[code]:
                return

    def _begins(self, codes: list[int], first: list[int]) -> int:
        found = 0
        for code in codes:
            if code < 0:
                return found | self._grammar.masks[-2 - code]
            found |= first[code]
            if not self._may_be_empty[code]:
                return found
        return found

    def _find_follow(self) -> list[int]:
        """The characters that may stand after a rule, wherever it is used."""
        follow = [0] * len(self._rules)
        passed_on: list[set[int]] = [set() for _ in self._rules]
        for rule in self._rules:
            for codes in self._alternatives[rule]:
                after, ends = 0, True
                for code in reversed(codes):
                    if code < 0:
                        after, ends = self._grammar.masks[-2 - code], False
                        continue
                    follow[code] |= after
                    if ends:
                        passed_on[rule].add(code)
                    if self._may_be_empty[code]:
                        after |= self._first[code]
                    else:
                        after, ends = self._first[code], False
        todo = list(self._rules)
        while todo:
            rule = todo.pop()
            for each in passed_on[rule]:
                if follow[rule] & ~follow[each]:
                    follow[each] |= follow[rule]
                    todo.append(each)
        return follow

    def _find_plain(self, follow: list[int]) -> list[bool]:
        """Rules in which, and in all within, each next character leaves one way."""
        plain = [True] * len(self._rules)
        users = _users(self._alternatives)
        todo = [rule for rule in self._rules if self._overlaps(rule, follow[rule])]
        while todo:
            rule = todo.pop()
            if plain[rule]:
                plain[rule] = False
                todo += users[rule]
        return plain

    def _overlaps(self, rule: int, follow: int) -> bool:
        seen = 0
        num_empty = 0
        for codes in self._alternatives[rule]:
            begins = self._begins(codes, self._first)
            if all(code >= 0 and self._may_be_empty[code] for code in codes):
                begins |= follow
                num_empty += 1
            if seen & begins or num_empty > 1:
                return True
            seen |= begins
        return False


class _Search:
    """Stacks as llama.cpp has them, innermost position last, each kept once: numbers of (position, rest)."""

    def __init__(self, grammar: Grammar, facts: _Facts) -> None:
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


def _codes(grammar: Grammar, at: int) -> list[int]:
    return grammar.codes[at : grammar.codes.index(END, at)]


def _users(alternatives: list[list[list[int]]]) -> list[list[int]]:
    """Of each rule: the rules that refer to it."""
    users: list[set[int]] = [set() for _ in alternatives]
    for rule, found in enumerate(alternatives):
        for codes in found:
            for code in codes:
                if code >= 0:
                    users[code].add(rule)
    return [sorted(each) for each in users]


def _rules_by_position(grammar: Grammar) -> list[int]:
    rule_at = [0] * len(grammar.codes)
    for rule, starts in enumerate(grammar.starts):
        for at in starts:
            while grammar.codes[at] != END:
                rule_at[at] = rule
                at += 1
    return rule_at
