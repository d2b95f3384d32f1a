"""llama.cpp behind the engine: one model, and lanes of slots over it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from serving.engine.backend import Backend
from serving.engine.cores import CoreLease, pin_this_thread
from serving.engine.errors import RequestError
from serving.engine.lanes import Lane
from serving.engine.llamacpp.context import LlamaBackend, load_adapters
from serving.engine.llamacpp.memory import check_memory, fitted
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.llamacpp.sampling import LlamaSampler, check_sampling
from serving.engine.metrics import EngineMetrics, snapshot
from serving.engine.queue import JobQueue
from serving.engine.settings import EngineSettings
from serving.engine.slots import Job
from serving.engine.stream import Stream
from serving.engine.types import Request

T = TypeVar("T")


class LlamaRuntime:
    """Implements `Runtime`."""

    def __init__(
        self, path: str, settings: EngineSettings, lease: CoreLease, auto: Collection[str] = ()
    ) -> None:
        """`auto`: those of `lanes` and `slots` that may be fewer than in the settings, if memory is short."""
        self._settings = settings
        self.model = _on_thread(lease.cpus, lambda: LlamaModel.open(path, gpu_layers=settings.gpu_layers))
        self.num_vocab = self.max_top_logprobs = self.model.num_vocab
        self._lanes: list[Lane] = []
        try:
            self._adapters = load_adapters(self.model, settings.adapters)
            num_lanes, self._num_slots = fitted(self.model, settings, auto)
            check_memory(self.model, settings, num_slots=self._num_slots * num_lanes)
        except BaseException:
            self.model.close()
            raise
        self._queue = JobQueue(num_lanes=num_lanes, max_queued=settings.max_queued)
        try:
            self._open_lanes(num_lanes, lease)
        except BaseException:
            self.close()
            raise

    def open_sampler(self, request: Request) -> LlamaSampler:
        if request.adapter is not None and request.adapter not in self._settings.adapters:
            raise RequestError("unknown_adapter", f"there is no adapter {request.adapter!r}")
        check_sampling(request.sampling, self.num_vocab)
        return LlamaSampler(self.model, request)

    def submit(self, job: Job, *, bounded: bool) -> None:
        self._queue.put(job, bounded=bounded)

    def cancel(self, stream: Stream) -> None:
        if not self._queue.withdraw(stream):
            for lane in self._lanes:
                lane.interrupt(stream)

    def metrics(self) -> EngineMetrics:
        return snapshot(
            [lane.counters for lane in self._lanes],
            num_queued=len(self._queue),
            num_slots=self._num_slots * len(self._lanes),
            context_tokens=self._settings.context_tokens,
        )

    def close(self) -> None:
        self._queue.close("the engine is closed")
        for lane in self._lanes:
            if lane.backend is not None:
                lane.backend.abort()
            lane.join()
        self.model.close()

    def _open_lanes(self, num_lanes: int, lease: CoreLease) -> None:
        for index in range(num_lanes):
            cpus, num_cores = (
                _share(lease.cpus, index, num_lanes),
                _count(self._settings.cores, index, num_lanes),
            )
            lane = Lane(
                index, self._queue, self._opener(num_cores), _close, self.model, self._settings, cpus
            )  # fmt: skip
            lane.start()
            self._lanes.append(lane)
        for lane in self._lanes:
            lane.wait_until_open()

    def _opener(self, num_cores: int) -> Callable[[], Backend]:
        settings = self._settings
        threads = (settings.prompt_threads or num_cores, settings.decode_threads or num_cores)
        return lambda: LlamaBackend(
            self.model, settings, num_slots=self._num_slots, threads=threads, adapters=self._adapters
        )


def _close(backend: Backend) -> None:
    assert isinstance(backend, LlamaBackend)
    backend.close()


def _count(total: int, index: int, parts: int) -> int:
    return total * (index + 1) // parts - total * index // parts


def _share(cpus: Sequence[int], index: int, parts: int) -> Sequence[int]:
    return cpus[len(cpus) * index // parts : len(cpus) * (index + 1) // parts]


def _on_thread(cpus: Sequence[int], work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own that is kept on these cores: the caller's thread stays where it
    is."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            pin_this_thread(cpus)
            results.append(work())
        except BaseException as error:  # raised again on the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="engine-load")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
