"""Continuous batching: what goes into the next forward pass. Pure: no threads, no native code, any clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from serving.engine.backend import Backend, Chunk, Vocabulary
from serving.engine.metrics import Counters
from serving.engine.placement import inward, place
from serving.engine.slots import Job, Slot
from serving.engine.stream import Stream
from serving.engine.types import FinishReason, Result, TokenLogprob

_LONG_PROMPT_TILES = 2
"""A prompt of so many tiles is long: from here on tiles save more than passes of their own cost."""


class Scheduler:
    """Jobs wait, get a slot, have their prompt computed in chunks beside others' answers, and leave.

    Every pass holds one row for each answer that is being written and fills the rest of `batch_tokens` with
    prompts, oldest first. Prompts that share a start with one that is being computed wait for it and take a
    copy.

    `deterministic`: the same work in passes of such shapes that nothing depends on what else is in them, if
    the backend has them (`Backend.tile_tokens`); else one sequence a pass, and nothing is reused.
    """

    def __init__(
        self,
        backend: Backend,
        vocabulary: Vocabulary,
        *,
        batch_tokens: int = 512,
        prefix_cache: bool = True,
        deterministic: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.slots = [Slot(index) for index in range(backend.num_slots)]
        self._backend = backend
        self._vocabulary = vocabulary
        self._batch_tokens = batch_tokens
        self._tile_tokens = backend.tile_tokens if deterministic else None
        self._in_turn = deterministic and self._tile_tokens is None
        self._reuse = prefix_cache and not self._in_turn
        self._min_copy_tokens = max(16, backend.context_tokens // 64)
        self._clock = clock
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Slot] = []
        self._ticks = 0
        self._turn = 0
        self._has_gap = False
        """An answer has ended since busy slots were last moved together."""

    @property
    def num_free(self) -> int:
        """How many more jobs could get a slot now."""
        return sum(slot.job is None for slot in self.slots) - len(self._waiting)

    @property
    def num_jobs(self) -> int:
        """Jobs in slots, and those that wait here for one."""
        return len(self._waiting) + sum(slot.job is not None for slot in self.slots)

    def add(self, job: Job) -> None:
        """Queue a job. It has been validated: a prompt of at least one token that is shorter than the
        context."""
        num_read = len(job.request.prompt) - job.request.num_written
        is_long = self._tile_tokens is not None and num_read >= _LONG_PROMPT_TILES * self._tile_tokens
        if is_long and not job.request.scores_prompt:  # a tile has more tokens than a pass may score
            job.num_tiled = num_read
        self._waiting.append(job)

    def computes(self, stream: Stream) -> bool:
        """Whether this stream's prompt is being computed; safe to ask from another thread."""
        jobs = [slot.job for slot in tuple(self._prefilling)]
        return any(job is not None and job.stream is stream for job in jobs)

    def step(self) -> None:
        """Drop what was given up, admit what waits, compute what one pass can hold, and sample."""
        began_s = self._clock()
        self._drop_abandoned(began_s)
        self._admit()
        self._close_ranks()
        for chunks in self._plan():
            if not self._decode(chunks):
                break
        self.counters.active = sum(slot.job is not None for slot in self.slots)
        self.counters.kv_tokens = sum(slot.num_computed for slot in self.slots)
        self.counters.busy_s += self._clock() - began_s

    def end_all(self, reason: FinishReason, why: str, code: str | None = None) -> None:
        """End every job and forget the cache; the scheduler can go on."""
        now_s = self._clock()
        error = why if reason == "error" else None
        for job in self._waiting:
            self._close(job, job.unanswered(reason, now_s, error=error, code=code))
        self._waiting.clear()
        for slot in self.slots:
            if slot.job is not None:
                self._close(slot.job, slot.result(reason, now_s, error=error, code=code))
                slot.release(self._ticks, num_kept=0)
            slot.forget()
            self._backend.truncate(slot.index, 0)
        self._prefilling.clear()

    # Leaving without an answer, and getting a slot.

    def _drop_abandoned(self, now_s: float) -> None:
        for slot in self.slots:
            if slot.job is not None and (reason := _abandoned(slot.job, now_s)):
                self._finish(slot, reason)
        if any(_abandoned(job, now_s) for job in self._waiting):
            staying: deque[Job] = deque()
            for job in self._waiting:
                if reason := _abandoned(job, now_s):
                    self._close(job, job.unanswered(reason, now_s))
                else:
                    staying.append(job)
            self._waiting = staying

    def _admit(self) -> None:
        held: deque[Job] = deque()
        while self._waiting and any(slot.job is None for slot in self.slots):
            job = self._waiting.popleft()
            if not self._try_admit(job):
                held.append(job)
        held.extend(self._waiting)
        self._waiting = held

    def _try_admit(self, job: Job) -> bool:
        placement = place(
            job,
            self.slots,
            reuse=self._reuse,
            min_copy_tokens=self._min_copy_tokens,
            tile_tokens=self._tile_tokens or 0,
        )
        if placement is None:
            return False
        slot, source = placement.slot, placement.source
        if placement.moved_to is not None:
            self._copy(slot, placement.moved_to)
        if source is not None:
            self._backend.copy(source.index, slot.index)
            if source.job is None and source.num_computed == placement.num_cached:
                source.spare()  # all of it goes on in the other slot
        self._backend.truncate(slot.index, placement.num_cached)
        slot.start(job, placement.num_cached)
        self._prefilling.append(slot)
        self.counters.prompt_tokens += slot.num_prompt
        self.counters.cached_tokens += placement.num_cached
        return True

    def _close_ranks(self) -> None:
        """Has who writes far from the others go on beside them."""
        if not (self._has_gap and self._reuse):
            return
        self._has_gap = False
        while move := inward(self.slots, self._min_copy_tokens):
            slot, gap = move.slot, move.gap
            if move.moved_to is not None:
                self._copy(gap, move.moved_to)
            self._copy(slot, gap)
            gap.spare()
            slot.index, gap.index = gap.index, slot.index
            self.slots[slot.index], self.slots[gap.index] = slot, gap

    def _copy(self, source: Slot, target: Slot) -> None:
        self._backend.copy(source.index, target.index)
        target.take_over(source)

    # Forward passes.

    def _plan(self) -> list[list[Chunk]]:
        """The next passes: one, and deterministic one for each long prompt before it."""
        writing = [slot for slot in self.slots if slot.job is not None and not slot.in_prompt]
        if self._in_turn:
            return self._plan_in_turn(writing)
        adapter = self._next_adapter(writing)
        chosen = [slot.next_chunk(1) for slot in writing if slot.adapter == adapter]
        budget, num_targets = self._batch_tokens - len(chosen), self._backend.max_targets
        for slot in self._prefilling:
            room = budget if slot.prompt_logprobs is None else min(budget, num_targets)
            if room > 0 and slot.adapter == adapter:
                chosen.append(slot.next_chunk(self._limit(slot, room)))
                budget -= len(chosen[-1].tokens)
                num_targets -= len(chosen[-1].targets)
        together = sorted((chunk for chunk in chosen if not chunk.tiled), key=lambda chunk: chunk.slot)
        return [*([chunk] for chunk in chosen if chunk.tiled), *([together] if together else [])]

    def _limit(self, slot: Slot, budget: int) -> int:
        """Most tokens of this slot's prompt in the next pass."""
        if self._tile_tokens is None:
            return budget
        if slot.in_tiles:
            left, room = slot.num_tiled - slot.num_computed, max(budget, self._tile_tokens)
            return left if left < room + self._tile_tokens else room  # what is left fills a tile, too
        left = len(slot.tokens) - slot.num_computed
        count = max(1, min(budget, self._tile_tokens - 1, left - 1))
        return count - (count % 2 == 0)

    def _plan_in_turn(self, writing: list[Slot]) -> list[list[Chunk]]:
        """One sequence a pass, in turn, so that no answer depends on its neighbours."""
        ready = sorted([*writing, *self._prefilling], key=lambda slot: (slot.index <= self._turn, slot.index))
        if not ready:
            return []
        slot = ready[0]
        self._turn = slot.index
        most = self._batch_tokens if slot.prompt_logprobs is None else self._backend.max_targets
        return [[slot.next_chunk(most)]]

    def _next_adapter(self, writing: list[Slot]) -> str | None:
        """A pass has one adapter: take turns between those in use."""
        in_use = list(dict.fromkeys(slot.adapter for slot in (*writing, *self._prefilling)))
        if len(in_use) <= 1:
            return in_use[0] if in_use else None
        self._turn += 1
        return sorted(in_use, key=lambda name: name or "")[self._turn % len(in_use)]

    def _decode(self, chunks: list[Chunk]) -> bool:
        """One forward pass, and a token for every slot that wants one; False if it was aborted."""
        began_s = self._clock()
        adapter = self.slots[chunks[0].slot].adapter
        finished = self._backend.decode(chunks, adapter)
        now_s = self._clock()
        self.counters.compute_s += now_s - began_s
        if not finished:
            for chunk in chunks:
                self._backend.truncate(chunk.slot, chunk.start)
            return False
        self.counters.steps += 1
        for chunk in chunks:
            self._advance(self.slots[chunk.slot], chunk, now_s)
        return True

    def _advance(self, slot: Slot, chunk: Chunk, now_s: float) -> None:
        assert slot.job is not None
        was_prompt = slot.in_prompt
        slot.num_computed += len(chunk.tokens)
        self.counters.rows += len(chunk.tokens)
        if chunk.targets and slot.prompt_logprobs is not None:
            num_top = slot.job.request.sampling.top_logprobs or 0
            slot.prompt_logprobs += self._backend.score(slot.index, num_top)
        if not chunk.wants_output:
            return
        if was_prompt:
            self._prefilling.remove(slot)
        try:
            token, logprob = self._backend.sample(slot.index, slot.job.sampler)
        except ValueError as error:
            self._finish(slot, "error", error=str(error), code="bad_grammar")
            return
        self._accept(slot, token, logprob, now_s)

    def _accept(self, slot: Slot, token: int, logprob: TokenLogprob | None, now_s: float) -> None:
        assert slot.job is not None
        self._time_token(slot, slot.job, now_s)
        sampling = slot.job.request.sampling
        if self._vocabulary.is_end(token) or token in sampling.stop_token_ids:
            self._finish(slot, "stop")
            return
        slot.tokens.append(token)
        if logprob is not None and slot.logprobs is not None:
            slot.logprobs.append(logprob)
        self.counters.answer_tokens += 1
        shown = slot.text.push(self._vocabulary.piece(token))
        if slot.text.stopped:
            self._finish(slot, "stop", shown=shown)
        elif self._is_full(slot, sampling.max_tokens):
            self._finish(slot, "length", shown=shown)
        elif shown:
            slot.stream(shown)

    def _is_full(self, slot: Slot, max_tokens: int) -> bool:
        answered = len(slot.tokens) - slot.num_prompt
        return answered >= max_tokens or len(slot.tokens) > self._backend.context_tokens

    def _time_token(self, slot: Slot, job: Job, now_s: float) -> None:
        if slot.first_token_s is None:
            slot.first_token_s = now_s
            self.counters.first_token.add(now_s - job.submitted_s)
        else:
            self.counters.per_token.add(now_s - slot.last_token_s)
        slot.last_token_s = now_s

    # Results.

    def _finish(
        self,
        slot: Slot,
        reason: FinishReason,
        *,
        shown: str = "",
        error: str | None = None,
        code: str | None = None,
    ) -> None:
        assert slot.job is not None
        job = slot.job
        shown += slot.text.finish()
        if slot.text.stopped and reason == "length":
            reason = "stop"
        if shown or len(slot.tokens) - slot.num_prompt > slot.num_streamed:
            slot.stream(shown)
        result = slot.result(reason, self._clock(), error=error, code=code)
        if slot in self._prefilling:
            self._prefilling.remove(slot)
        self._ticks += 1
        self._has_gap = True
        slot.release(self._ticks, num_kept=self._backend.context_tokens - 1)  # room for a row of padding
        self._backend.truncate(slot.index, slot.num_computed)
        self._close(job, result)

    def _close(self, job: Job, result: Result) -> None:
        job.sampler.close()
        counters = self.counters
        counters.requests_done += result.finish_reason in ("stop", "length")
        counters.requests_cancelled += result.finish_reason in ("cancelled", "timeout")
        counters.requests_failed += result.finish_reason == "error"
        job.stream.finish(result)


def _abandoned(job: Job, now_s: float) -> FinishReason | None:
    if job.stream.cancelled:
        return "cancelled"
    return "timeout" if job.expired(now_s) else None
