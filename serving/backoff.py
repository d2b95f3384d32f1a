"""Models that could not be loaded here, and when each is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_S, MOST_S = 30.0, 600.0
"""How long a model is left alone after its first failure, and at most: twice as long after each."""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception
    count: int
    again_s: float


class LoadFailures:
    """One record for each model, whoever asks for it: as champion, canary or shadow, or by its name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def add(self, sha256: str, error: Exception) -> None:
        before = self._failures.get(sha256)
        count = 1 if before is None else before.count + 1
        pause_s = min(MOST_S, FIRST_S * 2.0 ** min(count - 1, 16))
        self._failures[sha256] = _Failure(error, count, self._clock() + pause_s)

    def check(self, sha256: str) -> None:
        """Raises what went wrong the last time, until the model is to be tried again."""
        failure = self._failures.get(sha256)
        if failure is not None and self._clock() < failure.again_s:
            raise failure.error.with_traceback(None)

    def forget(self, sha256: str) -> None:
        """It was loaded, or promoted anew: what was wrong may have been put right."""
        self._failures.pop(sha256, None)
