"""What holds of a grammar's rules wherever they stand: how they begin, and which of them are plain."""

from __future__ import annotations

from collections.abc import Iterator

from serving.engine.llamacpp.gbnf import END, Grammar

_MAX_STARTS = 1_000_000
"""Ways into a rule until its first character: llama.cpp walks each when it looks for left recursion."""


class AmbiguousGrammar(ValueError):
    """`rule`: the one that is open most often."""

    def __init__(self, rule: str) -> None:
        super().__init__(
            f"it is ambiguous: {rule!r} can be read in several ways that begin alike, and these multiply"
        )
        self.rule = rule


class Facts:
    """`is_plain`: of each rule, whether in it and all within each next character leaves one way."""

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
