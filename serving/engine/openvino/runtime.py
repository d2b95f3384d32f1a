"""OpenVINO GenAI behind the engine: its scheduler, prefix cache and sampling; our queue, text and results."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import Any

from serving.engine.cores import CoreLease, first_thread_on, pin_this_thread
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.llamacpp.sampling import check_grammar, check_sampling, grammar_of
from serving.engine.metrics import Counters, EngineMetrics, snapshot
from serving.engine.openvino.pipeline import (
    as_tensor,
    check_request,
    generation_config,
    generation_status,
    last_line,
    open_pipeline,
)
from serving.engine.openvino.room import Room
from serving.engine.queue import JobQueue
from serving.engine.settings import EngineSettings
from serving.engine.slots import Job, Slot
from serving.engine.stream import Stream
from serving.engine.types import ENGINE_FAILED, FinishReason, Request, Result, TokenLogprob

logger = logging.getLogger(__name__)


class NoSampler:
    """The pipeline keeps the sampling state itself."""

    def close(self) -> None:
        return


class OpenVinoRuntime:
    """Implements `Runtime`. llama.cpp reads the vocabulary and the chat template, as for its own backend."""

    max_top_logprobs = 0

    def __init__(self, path: str, settings: EngineSettings, lease: CoreLease) -> None:
        assert settings.slots != "auto"
        self._settings, self._num_slots = settings, settings.slots
        self._cpus = lease.cpus
        self.model = LlamaModel.open(path, vocab_only=True)
        self.num_vocab = self.model.num_vocab
        self._queue = JobQueue(num_lanes=1, max_queued=settings.max_queued)
        self._counters = Counters()
        self._running: dict[Any, Slot] = {}
        self._held: deque[Job] = deque()
        """Taken, but there is no room for them in the cache beside those that run."""
        self._careful: set[Job] = set()
        """Of the held: one of their grammars breaks the pipeline. They begin one by one."""
        self._room = Room(self.model.metadata, settings)
        self._next_id = 0
        self._pipeline: Any = None
        self._status: Any = None
        """openvino_genai.GenerationStatus."""
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
        check_grammar(self.model, grammar_of(request.sampling))
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
            self._open()
        except Exception as error:  # raised again on the thread that opens the engine
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            self._work()
        except Exception as error:
            logger.exception("the openvino pipeline has failed")
            why = f"the engine has failed: {error}"
            self._queue.close(why, failed=True)
            self._end_all("error", why, ENGINE_FAILED)

    def _open(self) -> None:
        architecture = self.model.metadata("general.architecture")
        pin_this_thread(self._cpus)
        with first_thread_on(self._cpus):  # whose processors the library takes for its threads, and this one
            # Its own pinning, a little faster, minds no lease.
            pin = bool(self._cpus) and len(self._cpus) == os.cpu_count()
            self._pipeline = open_pipeline(
                self.model.path, architecture, self._settings, self._room.cache_gb, pin=pin
            )
        self._status = generation_status()
        if not pin:
            pin_this_thread(self._cpus[:1])  # which computes too: the others find the rest

    def _work(self) -> None:
        limit = self._num_slots
        while True:
            active = len(self._running) + len(self._held)
            jobs = self._queue.take(0, num_active=active, num_free=limit - active)
            if jobs is None:
                self._end_all("cancelled", None)
                return
            began_s = time.monotonic()
            self._held.extend(jobs)
            self._drop_held(began_s)
            while self._held and self._may_start(self._held[0]):
                self._start(self._held.popleft())
            self._step()
            self._counters.busy_s += time.monotonic() - began_s

    def _drop_held(self, now_s: float) -> None:
        """End those that were given up, and those for which the whole cache is too small."""
        held, self._held = self._held, deque()
        for job in held:
            if job.stream.cancelled or job.expired(now_s):
                reason: FinishReason = "cancelled" if job.stream.cancelled else "timeout"
                self._close(job, job.unanswered(reason, now_s))
            elif self._room.is_too_small(job.request):
                needed = self._room.needed(job.request)
                error = (
                    f"it may take {needed} tokens of the cache, which has room for {self._room.num_tokens}"
                )
                code = "context_length_exceeded"
                self._close(job, job.unanswered("error", now_s, error=error, code=code))
            else:
                self._held.append(job)

    def _may_start(self, job: Job) -> bool:
        if job in self._careful and any(map(_is_suspect, self._running.values())):
            return False
        self._careful.discard(job)
        running = (slot.job.request for slot in self._running.values() if slot.job is not None)
        return self._room.fits(job.request, running)

    def _start(self, job: Job) -> None:
        slot = Slot(self._next_id)
        slot.start(job, 0)
        try:
            self._add(slot)
        except RuntimeError as error:
            self._close(job, job.unanswered("error", time.monotonic(), error=str(error), code="unsupported"))
            return
        self._counters.prompt_tokens += slot.num_prompt

    def _add(self, slot: Slot) -> None:
        """Hand over the slot's prompt and what it has written so far; the rest is to be written."""
        import numpy as np

        assert slot.job is not None
        sampling, written = slot.job.request.sampling, len(slot.tokens) - slot.num_prompt
        room = self._settings.context_tokens - len(slot.tokens) + 1
        config = generation_config(
            sampling, grammar_of(sampling), self.model.end_tokens, min(sampling.max_tokens - written, room)
        )
        tokens = as_tensor(np.array([slot.tokens], dtype=np.int64))
        self._next_id += 1
        self._running[self._pipeline.add_request(self._next_id, tokens, config)] = slot

    def _step(self) -> None:
        now_s = time.monotonic()
        for handle, slot in list(self._running.items()):
            assert slot.job is not None
            if slot.job.stream.cancelled or slot.job.expired(now_s):
                self._read(handle, now_s)
                if handle in self._running:
                    self._finish(handle, "cancelled" if slot.job.stream.cancelled else "timeout")
        if not self._pipeline.has_non_finished_requests():
            for handle in list(self._running):  # the pipeline has put them aside, and says so to nobody
                self._finish(handle, "error", error="openvino has given the request up")
            return
        began_s = time.monotonic()
        try:
            self._pipeline.step()
        except RuntimeError as error:
            self._recover(error)
            return
        now_s = time.monotonic()
        self._counters.compute_s += now_s - began_s
        self._counters.steps += 1
        for handle, slot in list(self._running.items()):
            if not self._waits_for_its_end(handle, slot):
                self._read(handle, now_s)
        self._counters.active = len(self._running)

    def _waits_for_its_end(self, handle: Any, slot: Slot) -> bool:
        """Whether an answer can be read whole once it is there: a read for each token is 1 % of a pass.

        Not before its first token, which is timed, nor one that is watched, for its reader or for stop
        strings.
        """
        assert slot.job is not None
        watched = slot.job.stream.wants_deltas or slot.job.request.sampling.stop
        return slot.first_token_s is not None and not watched and handle.get_status() == self._status.RUNNING

    def _read(self, handle: Any, now_s: float) -> None:
        if handle.get_status() == self._status.FINISHED:
            for output in handle.read_all():
                self._receive(handle, output, now_s)
        while handle in self._running and handle.can_read():
            for output in handle.read().values():
                self._receive(handle, output, now_s)

    def _recover(self, error: RuntimeError) -> None:
        """A grammar that llama.cpp reads and XGrammar does not breaks the whole pipeline, in its first pass.

        The request with a grammar and no token yet ends with the error; of several, each is tried again. The
        others go on in a new pipeline. One that fails without such a request has failed for good.
        """
        for handle in list(self._running):
            self._read(handle, time.monotonic())
        slots = list(self._running.values())
        suspects = [slot for slot in slots if _is_suspect(slot)]
        if not suspects:
            raise error
        logger.warning("openvino: a grammar is refused, the pipeline is opened anew: %s", last_line(error))
        if len(suspects) == 1:
            message = f"the openvino backend cannot use this grammar: {last_line(error)}"
            self._give_up(suspects[0], message, "bad_grammar")
        else:
            jobs = [slot.job for slot in suspects if slot.job is not None]
            self._careful.update(jobs)
            self._held.extendleft(reversed(jobs))
        self._running.clear()
        self._pipeline = None  # its memory is needed
        left = [slot for slot in slots if slot not in suspects]
        try:
            self._open()
        except Exception as failure:
            for slot in left:
                self._give_up(slot, f"the engine has failed: {failure}", ENGINE_FAILED)
            raise
        for slot in left:
            self._go_on(slot)

    def _go_on(self, slot: Slot) -> None:
        """In a new pipeline, where a grammar begins anew: so does the answer, if nobody has seen of it."""
        assert slot.job is not None
        if _is_constrained(slot):
            if slot.job.stream.wants_deltas:
                self._give_up(slot, "the openvino pipeline was opened anew", None)
                return
            slot.start(slot.job, 0)
        try:
            self._add(slot)
        except RuntimeError as error:
            self._give_up(slot, str(error), None)

    def _give_up(self, slot: Slot, error: str, code: str | None) -> None:
        assert slot.job is not None
        self._close(slot.job, slot.result("error", time.monotonic(), error=error, code=code))

    def _receive(self, handle: Any, output: Any, now_s: float) -> None:
        slot = self._running[handle]
        assert slot.job is not None
        before_s = now_s if slot.first_token_s is None else slot.last_token_s
        count = len(output.generated_ids)
        read = zip(output.generated_ids, output.generated_log_probs, strict=True)
        for number, (token, logprob) in enumerate(read, start=1):
            # Several that are read at once came one after the other.
            self._time_token(slot, slot.job, before_s + (now_s - before_s) * number / count)
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

    def _finish(
        self,
        handle: Any,
        reason: FinishReason,
        shown: str = "",
        error: str | None = None,
        code: str | None = None,
    ) -> None:
        slot = self._running.pop(handle)
        assert slot.job is not None
        handle.cancel()  # without effect on one that has ended
        shown += slot.text.finish()
        if shown or len(slot.tokens) - slot.num_prompt > slot.num_streamed:
            slot.stream(shown)
        self._close(slot.job, slot.result(reason, time.monotonic(), error=error, code=code))

    def _end_all(self, reason: FinishReason, error: str | None, code: str | None = None) -> None:
        for handle in list(self._running):
            self._read(handle, time.monotonic())
            if handle in self._running:
                self._finish(handle, reason, error=error, code=code)
        while self._held:
            job = self._held.popleft()
            self._close(job, job.unanswered(reason, time.monotonic(), error=error, code=code))

    def _close(self, job: Job, result: Result) -> None:
        self._counters.requests_done += result.finish_reason in ("stop", "length")
        self._counters.requests_cancelled += result.finish_reason in ("cancelled", "timeout")
        self._counters.requests_failed += result.finish_reason == "error"
        job.stream.finish(result)


def _is_suspect(slot: Slot) -> bool:
    """Whether its grammar has not been used yet."""
    return _is_constrained(slot) and slot.first_token_s is None


def _is_constrained(slot: Slot) -> bool:
    assert slot.job is not None
    sampling = slot.job.request.sampling
    return sampling.grammar is not None or sampling.json_schema is not None
