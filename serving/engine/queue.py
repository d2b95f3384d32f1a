"""The engine's one queue, from which its lanes take jobs as slots come free."""

from __future__ import annotations

import threading
import time
from collections import deque

from serving.engine.errors import EngineError, RequestError
from serving.engine.slots import Job
from serving.engine.stream import Stream
from serving.engine.types import ENGINE_FAILED, FinishReason


class JobQueue:
    """First come, first served; the lanes share what waits evenly. Thread-safe."""

    def __init__(self, *, num_lanes: int, max_queued: int = 0) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._active = [0] * num_lanes
        self._max_queued = max_queued
        self._closed: str | None = None
        self.failure: str | None = None
        """Why the engine has failed, if that is what closed the queue."""

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, *, bounded: bool) -> None:
        """Raises RequestError `queue_full`, or EngineError if the engine is closed."""
        with self._changed:
            if self._closed is not None:
                raise EngineError(self._closed)
            if bounded and self._max_queued and len(self._jobs) >= self._max_queued:
                raise RequestError("queue_full", f"{self._max_queued} requests are waiting already")
            self._jobs.append(job)
            self._changed.notify_all()

    def take(self, lane: int, *, num_active: int, num_free: int) -> list[Job] | None:
        """The lane's share of what waits; blocks while the lane has nothing to do. None: the engine is
        closed."""
        with self._changed:
            self._active[lane] = num_active
            if num_active == 0:
                self._changed.wait_for(lambda: self._closed is not None or self._jobs)
            if self._closed is not None:
                return None
            self._drop_expired()
            count = max(0, min(num_free, self._share(lane), len(self._jobs)))
            taken = [self._jobs.popleft() for _ in range(count)]
            self._active[lane] += count
            return taken

    def withdraw(self, stream: Stream) -> bool:
        """End a cancelled job that still waits; False if it does not wait here."""
        with self._changed:
            job = next((job for job in self._jobs if job.stream is stream), None)
            if job is None:
                return False
            self._jobs.remove(job)
        _end(job, "cancelled")
        return True

    def close(self, reason: str, *, failed: bool = False) -> None:
        """End what waits; `put` raises from now on, and `take` returns None."""
        with self._changed:
            if self._closed is None:
                self._closed, self.failure = reason, reason if failed else None
            jobs, self._jobs = self._jobs, deque()
            self._changed.notify_all()
        for job in jobs:
            _end(job, "error" if self.failure else "cancelled", self.failure)

    def _share(self, lane: int) -> int:
        total = sum(self._active) + len(self._jobs)
        return -(-total // len(self._active)) - self._active[lane]

    def _drop_expired(self) -> None:
        now_s = time.monotonic()
        expired = [job for job in self._jobs if job.expired(now_s)]
        for job in expired:
            self._jobs.remove(job)
            _end(job, "timeout")


def _end(job: Job, reason: FinishReason, error: str | None = None) -> None:
    job.sampler.close()
    code = None if error is None else ENGINE_FAILED
    job.stream.finish(job.unanswered(reason, time.monotonic(), error=error, code=code))
