"""How much work is let in: a bound on what runs and waits, and a rate per key. Pure: any clock."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SMOOTHING = 0.1
_MAX_BUCKETS = 4096


class Refused(Exception):
    """Too much at once; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Admission:
    """At most `most` answers run or wait. Not thread-safe: one event loop."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._seconds_per_answer = 1.0
        self.num_inside = 0
        self.num_refused = 0

    @contextmanager
    def enter(self, num_answers: int) -> Iterator[None]:
        """Raises Refused at once if there is no room. A lone request is let in whatever its size."""
        if self.num_inside and self.num_inside + num_answers > self._most:
            self.num_refused += 1
            raise Refused("too many requests at once: try again later", self.retry_after_s)
        began_s = self._clock()
        self.num_inside += num_answers
        try:
            yield
        finally:
            self.num_inside -= num_answers
            self._seconds_per_answer += _SMOOTHING * (self._clock() - began_s - self._seconds_per_answer)

    @property
    def retry_after_s(self) -> float:
        """About when the next place comes free: answers leave one after another, not all at the end."""
        return max(1.0, math.ceil(self._seconds_per_answer / max(1, self.num_inside)))


class RateLimit:
    """A bucket of tokens per caller, filled at the caller's rate, a minute's worth at most."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, per_minute: int | None) -> None:
        """Raises Refused if the caller has used up the rate."""
        if per_minute is None:
            return
        now_s = self._clock()
        level, filled_s = self._buckets.pop(caller, (float(per_minute), now_s))
        level = min(float(per_minute), level + (now_s - filled_s) * per_minute / 60)
        self._buckets[caller] = (max(0.0, level - 1), now_s)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if level < 1:
            self._buckets[caller] = (level, now_s)
            raise Refused(f"more than {per_minute} requests a minute", (1 - level) * 60 / per_minute)
