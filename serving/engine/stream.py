"""A submitted request as its caller sees it: deltas, a result, a way to cancel."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from serving.engine.types import Delta, Request, Result


class Stream:
    """Iterate (`for` or `async for`) over deltas, or wait for the `result()`. Every method is thread-safe.

    The deltas that are not read yet are bounded by the request's `max_tokens`; a slow reader holds up nobody.
    """

    def __init__(
        self,
        request: Request,
        *,
        keep_deltas: bool = True,
        on_cancel: Callable[[Stream], None] | None = None,
        on_finish: Callable[[Result], None] | None = None,
    ) -> None:
        self.request = request
        self._keep_deltas = keep_deltas
        self._on_cancel = on_cancel
        self._on_finish = on_finish
        self._changed = threading.Condition()
        self._deltas: deque[Delta] = deque()
        self._result: Result | None = None
        self._cancelled = False
        self._waiting: list[tuple[Callable[[], bool], Callable[[], None]]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def done(self) -> bool:
        return self._result is not None

    def cancel(self) -> None:
        """Give the request up, in the queue, in its prompt or in its answer; its result says `cancelled`."""
        with self._changed:
            if self._cancelled or self._result is not None:
                return
            self._cancelled = True
        if self._on_cancel is not None:
            self._on_cancel(self)

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end. Raises TimeoutError after `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._result is not None, timeout_s):
                raise TimeoutError(f"request {self.request.id!r} has no result after {timeout_s} s")
            assert self._result is not None
            return self._result

    async def result_async(self) -> Result:
        """Wait for the end without blocking the event loop."""
        await self._wait_async(lambda: self._result is not None)
        assert self._result is not None
        return self._result

    async def readable(self) -> None:
        """Wait for something to `take`, or the end, without blocking the event loop."""
        await self._wait_async(lambda: bool(self._deltas) or self._result is not None)

    def take(self) -> list[Delta]:
        """The deltas that nobody has read yet, without waiting."""
        with self._changed:
            deltas, self._deltas = list(self._deltas), deque()
        return deltas

    def __iter__(self) -> Iterator[Delta]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._deltas) or self._result is not None)
                if not self._deltas:
                    return
                delta = self._deltas.popleft()
            yield delta

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            if self._deltas:
                yield self._deltas.popleft()
            elif self._result is not None:
                return
            else:
                await self.readable()

    async def _wait_async(self, ready: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:  # the loop has closed: nobody waits any more
                return

        with self._changed:
            if ready():
                return
            waiter = (ready, wake)
            self._waiting.append(waiter)
        try:
            await future
        finally:
            with self._changed:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    # The engine's side.

    def push(self, delta: Delta) -> None:
        """Hand a delta to the reader."""
        if not self._keep_deltas:
            return
        with self._changed:
            self._deltas.append(delta)
            self._notify()

    def finish(self, result: Result) -> None:
        """Hand the result over; the first one counts."""
        with self._changed:
            if self._result is not None:
                return
            self._result = result
            self._notify()
        if self._on_finish is not None:
            self._on_finish(result)

    @property
    def wants_deltas(self) -> bool:
        return self._keep_deltas

    def _notify(self) -> None:
        """Wake those who wait for what has come, and nobody else: a wake-up costs more than a token."""
        self._changed.notify_all()
        waiting, self._waiting = self._waiting, []
        for ready, wake in waiting:
            if ready():
                wake()
            else:
                self._waiting.append((ready, wake))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
