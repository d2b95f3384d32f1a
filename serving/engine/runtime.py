"""The seam between the engine that callers see and what runs its requests."""

from __future__ import annotations

from typing import Protocol

from serving.engine.backend import Sampler
from serving.engine.metrics import EngineMetrics
from serving.engine.slots import Job
from serving.engine.stream import Stream
from serving.engine.types import Request


class Runtime(Protocol):
    """Runs jobs until it is closed. Thread-safe."""

    num_vocab: int
    max_top_logprobs: int
    """Most of `Sampling.top_logprobs` that it gives."""

    def open_sampler(self, request: Request) -> Sampler:
        """Compile the request's sampling. Raises RequestError."""

    def submit(self, job: Job, *, bounded: bool) -> None:
        """Queue a job. Raises RequestError `queue_full`, or EngineError if closed."""

    def cancel(self, stream: Stream) -> None:
        """End a stream's job soon, wherever it is."""

    def metrics(self) -> EngineMetrics: ...

    def close(self) -> None:
        """Cancel what runs and free everything; further calls do nothing."""
