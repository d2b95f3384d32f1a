"""Texts of which few differ, as a small number a row."""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.verdict.ids import Rows

NONE = -1


@dataclass(frozen=True)
class Coded:
    """A text a row, or none. The numbers rise as the texts do."""

    texts: tuple[str, ...]
    numbers_B: NDArray[np.int32]
    """Places in `texts`; NONE where a row has no text."""

    def take(self, rows_B: Rows) -> "Coded":
        return Coded(self.texts, self.numbers_B[rows_B])

    def counts(self) -> dict[str, int]:
        """How many rows have each text; texts that none has are left out."""
        found = np.bincount(self.numbers_B[self.numbers_B != NONE], minlength=len(self.texts)).tolist()
        return {text: count for text, count in zip(self.texts, found, strict=True) if count}

    def groups(self) -> dict[str, Rows]:
        """The rows of each text that some row has, both rising; every row must have one."""
        order_B = np.argsort(self.numbers_B, kind="stable")
        starts = np.flatnonzero(np.diff(self.numbers_B[order_B])) + 1
        groups = np.split(order_B, starts) if order_B.size else []
        return {self.texts[self.numbers_B[rows_B[0]]]: rows_B for rows_B in groups}


class CodedBuilder:
    """Texts that come one after another."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._numbers = array("i")

    def add(self, text: str | None) -> None:
        self._numbers.append(NONE if text is None else self._places.setdefault(text, len(self._places)))

    def build(self) -> Coded:
        texts = sorted(self._places)
        ranks = np.empty(len(texts) + 1, dtype=np.int32)
        ranks[[self._places[text] for text in texts]] = np.arange(len(texts), dtype=np.int32)
        ranks[NONE] = NONE  # the last place
        return Coded(tuple(texts), ranks[np.frombuffer(self._numbers, dtype=np.int32)])
