"""OpenVINO GenAI behind the engine: its scheduler, prefix cache and sampling; our queue, text and results."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from serving.engine.cores import CoreLease, pin_this_thread
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.llamacpp.sampling import check_sampling
from serving.engine.metrics import Counters, EngineMetrics, snapshot
from serving.engine.openvino.pipeline import (
    as_tensor,
    check_request,
    generation_config,
    open_pipeline,
)
from serving.engine.queue import JobQueue
from serving.engine.settings import EngineSettings
from serving.engine.slots import Job, Slot
from serving.engine.stream import Stream
from serving.engine.types import FinishReason, Request, Result, TokenLogprob

logger = logging.getLogger(__name__)


class NoSampler:
    """The pipeline keeps the sampling state itself."""

    def close(self) -> None:
        return


class OpenVinoRuntime:
    """Implements `Runtime`. llama.cpp reads the vocabulary and the chat template, as for its own backend."""

    def __init__(self, path: str, settings: EngineSettings, lease: CoreLease) -> None:
        assert settings.slots != "auto"
        self._settings, self._num_slots = settings, settings.slots
        self._cpus = lease.cpus
        self.model = LlamaModel.open(path, vocab_only=True)
        self.num_vocab = self.model.num_vocab
        self._queue = JobQueue(num_lanes=1, max_queued=settings.max_queued)
        self._counters = Counters()
        self._running: dict[Any, Slot] = {}
        self._next_id = 0
        self._pipeline: Any = None
        self._error: Exception | None = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-openvino", daemon=True)
        self._thread.start()
        self._opened.wait()
        self._raise_if_not_open()

    def _raise_if_not_open(self) -> None:
        if self._error is not None:
            self.close()
            raise self._error

    def open_sampler(self, request: Request) -> NoSampler:
        check_sampling(request.sampling, self.num_vocab)
        check_request(request)
        return NoSampler()

    def submit(self, job: Job, *, bounded: bool) -> None:
        self._queue.put(job, bounded=bounded)

    def cancel(self, stream: Stream) -> None:
        self._queue.withdraw(stream)  # one that runs is dropped between two passes

    def metrics(self) -> EngineMetrics:
        return snapshot(
            [self._counters],
            num_queued=len(self._queue),
            num_slots=self._num_slots,
            context_tokens=self._settings.context_tokens,
        )

    def close(self) -> None:
        self._queue.close("the engine is closed")
        self._thread.join()
        self.model.close()

    def _run(self) -> None:
        try:
            pin_this_thread(self._cpus)
            architecture = self.model.metadata("general.architecture")
            self._pipeline = open_pipeline(self.model.path, architecture, self._settings)
        except Exception as error:  # raised again on the thread that opens the engine
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            self._work()
        except Exception as error:
            logger.exception("the openvino pipeline has failed")
            self._queue.close(f"the engine has failed: {error}")
            self._end_all("error", f"the engine has failed: {error}")

    def _work(self) -> None:
        limit = self._num_slots
        while True:
            active = len(self._running)
            jobs = self._queue.take(0, num_active=active, num_free=limit - active)
            if jobs is None:
                self._end_all("cancelled", None)
                return
            began_s = time.monotonic()
            for job in jobs:
                self._start(job)
            self._step()
            self._counters.busy_s += time.monotonic() - began_s

    def _start(self, job: Job) -> None:
        import numpy as np

        sampling = job.request.sampling
        room = self._settings.context_tokens - len(job.request.prompt) + 1
        config = generation_config(sampling, self.model.end_tokens, room)
        tokens = as_tensor(np.array([job.request.prompt], dtype=np.int64))
        self._next_id += 1
        try:
            handle = self._pipeline.add_request(self._next_id, tokens, config)
        except RuntimeError as error:
            self._close(job, job.unanswered("error", time.monotonic(), error=str(error), code="unsupported"))
            return
        slot = Slot(self._next_id)
        slot.start(job, 0)
        self._running[handle] = slot
        self._counters.prompt_tokens += slot.num_prompt

    def _step(self) -> None:
        now_s = time.monotonic()
        for handle, slot in list(self._running.items()):
            assert slot.job is not None
            if slot.job.stream.cancelled or slot.job.expired(now_s):
                self._finish(handle, "cancelled" if slot.job.stream.cancelled else "timeout")
        if not self._pipeline.has_non_finished_requests():
            return
        began_s = time.monotonic()
        self._pipeline.step()
        now_s = time.monotonic()
        self._counters.compute_s += now_s - began_s
        self._counters.steps += 1
        for handle in list(self._running):
            while handle in self._running and handle.can_read():
                for output in handle.read().values():
                    self._receive(handle, output, now_s)
        self._counters.active = len(self._running)

    def _receive(self, handle: Any, output: Any, now_s: float) -> None:
        slot = self._running[handle]
        assert slot.job is not None
        for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
            self._time_token(slot, slot.job, now_s)
            if self.model.is_end(token) or token in slot.job.request.sampling.stop_token_ids:
                self._finish(handle, "stop")
                return
            slot.tokens.append(token)
            self._counters.rows += 1
            self._counters.answer_tokens += 1
            if slot.logprobs is not None:
                slot.logprobs.append(TokenLogprob(token, logprob, {}))
            shown = slot.text.push(self.model.piece(token))
            if slot.text.stopped:
                self._finish(handle, "stop", shown)
                return
            if shown:
                slot.stream(shown)
        if output.finish_reason.name != "NONE":
            self._finish(handle, "length" if output.finish_reason.name == "LENGTH" else "stop")

    def _time_token(self, slot: Slot, job: Job, now_s: float) -> None:
        if slot.first_token_s is None:
            slot.first_token_s = now_s
            self._counters.first_token.add(now_s - job.submitted_s)
        else:
            self._counters.per_token.add(now_s - slot.last_token_s)
        slot.last_token_s = now_s

    def _finish(self, handle: Any, reason: FinishReason, shown: str = "", error: str | None = None) -> None:
        slot = self._running.pop(handle)
        assert slot.job is not None
        handle.cancel()  # without effect on one that has ended
        shown += slot.text.finish()
        if shown or len(slot.tokens) - slot.num_prompt > slot.num_streamed:
            slot.stream(shown)
        self._close(slot.job, slot.result(reason, time.monotonic(), error=error))

    def _end_all(self, reason: FinishReason, error: str | None) -> None:
        for handle in list(self._running):
            self._finish(handle, reason, error=error)

    def _close(self, job: Job, result: Result) -> None:
        self._counters.requests_done += result.finish_reason in ("stop", "length")
        self._counters.requests_cancelled += result.finish_reason in ("cancelled", "timeout")
        self._counters.requests_failed += result.finish_reason == "error"
        job.stream.finish(result)
