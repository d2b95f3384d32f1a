"""Seeded choices that come out the same on every Python and every platform."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """Choices that follow from a text seed.

    Rests on `random.Random.random` alone: the one method whose sequence Python promises to keep.
    """

    def __init__(self, seed: str) -> None:
        digest = hashlib.sha256(seed.encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.integer(0, len(items) - 1)]

    def sample(self, items: Sequence[Item], number: int) -> list[Item]:
        """Different items, in random order."""
        pool = list(items)
        for at in range(number):
            other = self.integer(at, len(pool) - 1)
            pool[at], pool[other] = pool[other], pool[at]
        return pool[:number]
