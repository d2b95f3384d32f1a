"""The engine: requests in, results out, whatever computes underneath."""

from __future__ import annotations

import functools
import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from serving.engine.calibration import resolve
from serving.engine.chat import ChatTemplate
from serving.engine.cores import CoreLease
from serving.engine.errors import EngineError, RequestError
from serving.engine.gguf_check import verify_model
from serving.engine.metrics import EngineMetrics
from serving.engine.runtime import Runtime
from serving.engine.settings import EngineSettings
from serving.engine.slots import Job
from serving.engine.stream import Stream
from serving.engine.tokenizer import Tokenizer
from serving.engine.types import ENGINE_FAILED, Request, Result

logger = logging.getLogger(__name__)


class Engine:
    """One model on one set of cores. Thread-safe; callers share its batches. A context manager."""

    def __init__(
        self, path: Path, settings: EngineSettings, runtime: Runtime, tokenizer: Tokenizer, lease: CoreLease
    ) -> None:
        """For `Engine.open`."""
        self.settings = settings
        self.model_path = path
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._lease = lease
        self._closing = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls, model_path: str | Path, settings: EngineSettings | None = None, lease: CoreLease | None = None
    ) -> Engine:
        """Verify and load a model. A given lease is the engine's from then on: closing the engine releases
        it.

        Raises ModelLoadError, ModelMismatch or CoresUnavailable; then nothing is left behind.
        """
        path = Path(model_path)
        settings = settings or EngineSettings()
        if settings.verify:
            verify_model(path)
        auto = [name for name in ("lanes", "slots") if getattr(settings, name) == "auto"]
        settings = resolve(settings, path)
        if lease is None:
            lease = _lease_for(settings)
        try:
            runtime, tokenizer = _open_runtime(path, settings, lease, auto)
        except BaseException:
            lease.release()
            raise
        logger.info("engine on %s: cores %s, %s", path.name, lease.cpus or "not pinned", settings.backend)
        return cls(path, settings, runtime, tokenizer, lease)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs, free the memory and the cores; further calls do nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._runtime.close()
            self._tokenizer.close()
            self._lease.release()

    # Text and token ids.

    @property
    def chat(self) -> ChatTemplate:
        """The model's own chat template. Raises ModelMismatch if it has none."""
        return self._tokenizer.chat

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> list[int]:
        """Token ids of a text; see `Tokenizer.tokenize`. Raises RequestError if it cannot fit into the
        context."""
        return self._tokenizer.tokenize(
            text, special=special, add_bos=add_bos, max_tokens=self.context_tokens
        )

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.detokenize(tokens)

    # Requests.

    def generate(
        self, requests: Iterable[Request], on_done: Callable[[Result], None] | None = None
    ) -> list[Result]:
        """Answer a batch; results in the order of the requests.

        A bad request gets a result with finish reason `error`, and the rest are answered. `on_done` is called
        on the caller's thread as results arrive. If it or the requests raise, or the wait is interrupted,
        what is left is cancelled. Raises EngineError when the engine fails meanwhile.
        """
        results: list[Result | None] = []
        arrived: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        streams: list[Stream] = []
        try:
            for index, request in enumerate(requests):
                results.append(None)
                deliver = functools.partial(_deliver, arrived, index)
                stream = Stream(request, keep_deltas=False, on_cancel=self._runtime.cancel, on_finish=deliver)
                try:
                    self._enqueue(stream, bounded=False)
                except RequestError as error:
                    stream.finish(_refused(request, error))
                streams.append(stream)
            for _ in streams:
                index, result = arrived.get()
                if result.error_code == ENGINE_FAILED:
                    raise EngineError(result.error)
                results[index] = result
                if on_done is not None:
                    on_done(result)
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return [result for result in results if result is not None]

    def submit(self, request: Request) -> Stream:
        """Queue one request. Raises RequestError at once if it cannot be answered, or the queue is full."""
        stream = Stream(request, on_cancel=self._runtime.cancel)
        self._enqueue(stream, bounded=True)
        return stream

    def _enqueue(self, stream: Stream, *, bounded: bool) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
        request = stream.request
        self._check_prompt(request)
        job = Job(request, stream, self._runtime.open_sampler(request), time.monotonic())
        try:
            self._runtime.submit(job, bounded=bounded)
        except (EngineError, RequestError):
            job.sampler.close()
            raise

    def _check_prompt(self, request: Request) -> None:
        prompt, limit = request.prompt, self.context_tokens
        if not prompt:
            raise RequestError("empty_prompt", "the prompt is empty")
        if len(prompt) >= limit:
            raise RequestError(
                "context_length_exceeded",
                f"the prompt has {len(prompt)} tokens, and the context of {limit} must hold the answer too",
            )
        if not 0 <= request.num_written <= len(prompt):
            raise RequestError("bad_request", f"num_written is {request.num_written} of {len(prompt)} tokens")
        if request.scores_prompt and request.sampling.top_logprobs is None:
            raise RequestError("bad_request", "scores_prompt needs sampling.top_logprobs")
        if min(prompt) < 0 or max(prompt) >= self._runtime.num_vocab:
            raise RequestError("bad_token", f"a token id is not between 0 and {self._runtime.num_vocab - 1}")

    # State.

    @property
    def context_tokens(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self.settings.context_tokens

    @property
    def cores(self) -> tuple[int, ...]:
        """The processors that the engine owns; empty: not pinned."""
        return self._lease.cpus

    @property
    def end_tokens(self) -> frozenset[int]:
        """The token ids with which the model ends an answer."""
        return self._tokenizer.end_tokens

    @property
    def max_top_logprobs(self) -> int:
        """Most of `Sampling.top_logprobs`; 0: a token's own log-probability alone."""
        return self._runtime.max_top_logprobs

    @functools.cached_property
    def model_sha256(self) -> str:
        """Of the model file, in hexadecimal; read on first use."""
        with self.model_path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def metrics(self) -> EngineMetrics:
        return self._runtime.metrics()


def _lease_for(settings: EngineSettings) -> CoreLease:
    if not settings.pin:
        return CoreLease.unpinned()
    return CoreLease.acquire(settings.cores, wait_s=settings.core_wait_s)


def _open_runtime(
    path: Path, settings: EngineSettings, lease: CoreLease, auto: Collection[str]
) -> tuple[Runtime, Tokenizer]:
    """The only place that knows the backends; each is imported when it is chosen."""
    if settings.backend == "llama_cpp":
        from serving.engine.llamacpp.runtime import LlamaRuntime

        runtime = LlamaRuntime(str(path), settings, lease, auto)
        return runtime, Tokenizer(runtime.model)
    from serving.engine.openvino.runtime import OpenVinoRuntime

    openvino = OpenVinoRuntime(str(path), settings, lease)
    return openvino, Tokenizer(openvino.model)


def _deliver(arrived: queue.SimpleQueue[tuple[int, Result]], index: int, result: Result) -> None:
    arrived.put((index, result))


def _refused(request: Request, error: RequestError) -> Result:
    return Result(
        request.id,
        "",
        (),
        "error",
        len(request.prompt),
        0,
        0,
        0.0,
        None,
        error=str(error),
        error_code=error.code,
    )
