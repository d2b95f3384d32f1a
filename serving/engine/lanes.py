"""Lanes: threads that each drive one scheduler and one backend, on their own cores, from one queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from serving.engine.backend import Backend, Vocabulary
from serving.engine.cores import pin_this_thread
from serving.engine.errors import EngineError
from serving.engine.metrics import Counters
from serving.engine.queue import JobQueue
from serving.engine.scheduler import Scheduler
from serving.engine.settings import EngineSettings
from serving.engine.slots import Job
from serving.engine.stream import Stream
from serving.engine.types import ENGINE_FAILED

logger = logging.getLogger(__name__)


class Lane(threading.Thread):
    """Opens its backend on its own thread, so that native threads inherit its cores, and runs until the queue
    closes."""

    def __init__(
        self,
        index: int,
        queue: JobQueue,
        open_backend: Callable[[], Backend],
        close_backend: Callable[[Backend], None],
        vocabulary: Vocabulary,
        settings: EngineSettings,
        cpus: Sequence[int],
    ) -> None:
        super().__init__(name=f"engine-lane-{index}", daemon=True)
        self.index = index
        self.backend: Backend | None = None
        self.scheduler: Scheduler | None = None
        self._queue = queue
        self._open_backend = open_backend
        self._close_backend = close_backend
        self._vocabulary = vocabulary
        self._settings = settings
        self._cpus = cpus
        self._opened = threading.Event()
        self._error: Exception | None = None

    @property
    def counters(self) -> Counters:
        assert self.scheduler is not None
        return self.scheduler.counters

    def wait_until_open(self) -> None:
        """Raises what opening the backend has raised."""
        self._opened.wait()
        if self._error is not None:
            raise self._error

    def interrupt(self, stream: Stream) -> None:
        """Stop the running pass if it computes this stream's prompt."""
        if self.scheduler is not None and self.backend is not None and self.scheduler.computes(stream):
            self.backend.abort()

    def run(self) -> None:
        try:
            pin_this_thread(self._cpus)
            self.backend = self._open_backend()
            self.scheduler = Scheduler(
                self.backend,
                self._vocabulary,
                batch_tokens=self._settings.batch_tokens,
                prefix_cache=self._settings.prefix_cache,
                deterministic=self._settings.deterministic is True or self.backend.tile_tokens is not None,
            )
        except Exception as error:  # raised again by wait_until_open, on the thread that opens the engine
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            self._work(self.scheduler)
        except Exception as error:
            logger.exception("%s has failed", self.name)
            why = f"the engine has failed: {error}"
            self._queue.close(why, failed=True)
            self.scheduler.end_all("error", why, ENGINE_FAILED)
        finally:
            self._close_backend(self.backend)

    def _work(self, scheduler: Scheduler) -> None:
        while True:
            jobs = self._queue.take(self.index, num_active=scheduler.num_jobs, num_free=scheduler.num_free)
            if jobs is None:
                if why := self._queue.failure:  # of another lane
                    scheduler.end_all("error", why, ENGINE_FAILED)
                else:
                    scheduler.end_all("cancelled", "the engine was closed")
                return
            self._step(scheduler, jobs)

    def _step(self, scheduler: Scheduler, jobs: list[Job]) -> None:
        for job in jobs:
            scheduler.add(job)
        try:
            scheduler.step()
        except EngineError as error:  # a pass has failed: its requests end, the lane goes on
            logger.error("%s: %s", self.name, error)
            scheduler.end_all("error", str(error))
