"""How long requests waited for a slot, as it can be told from outside of the engine.

An engine takes requests in the order in which they come, as many at once as it has slots: one that finds all
of them taken begins when enough of those before it have ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from serving.engine import Stream

_MOST = 1024
"""Requests that are remembered: many more than run and wait at once."""


class _Begun:
    def __init__(self, submitted_s: float, stream: Stream) -> None:
        self.submitted_s = submitted_s
        self.stream = stream
        self._end_s = float("inf")

    @property
    def end_s(self) -> float:
        if self._end_s == float("inf") and self.stream.done:
            self._end_s = self.submitted_s + self.stream.result(0).seconds
        return self._end_s


class Waits:
    """The requests of one engine. One event loop calls it."""

    def __init__(self, num_slots: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_slots = num_slots
        self._clock = clock
        self._begun: deque[_Begun] = deque(maxlen=_MOST)

    def add(self, streams: Iterable[Stream]) -> None:
        """These were submitted just now."""
        now_s = self._clock()
        self._begun.extend(_Begun(now_s, stream) for stream in streams)

    def waited_s(self, stream: Stream) -> float:
        """0 for a request that is not known."""
        ends_s: list[float] = []
        for each in self._begun:
            if each.stream is stream:
                return wait_s(each.submitted_s, ends_s, self._num_slots)
            ends_s.append(each.end_s)
        return 0.0


def wait_s(submitted_s: float, ends_s: Sequence[float], num_slots: int) -> float:
    """`ends_s`: when the requests that were submitted before ended, or will."""
    busy = sorted(end_s for end_s in ends_s if end_s > submitted_s)
    return busy[len(busy) - num_slots] - submitted_s if len(busy) >= num_slots else 0.0
