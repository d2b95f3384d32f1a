"""A backend of a dozen lines: a sequence's next token is the sum of what it holds, modulo 97."""

from __future__ import annotations

import time
from collections.abc import Sequence

from serving.engine.backend import Chunk, Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.slots import Job
from serving.engine.stream import Stream
from serving.engine.types import Request, Sampling, TokenLogprob

END = 0


class FakeBackend:
    def __init__(
        self, num_slots: int = 4, context_tokens: int = 256, *, tile_tokens: int | None = None
    ) -> None:
        self.num_slots, self.context_tokens, self.tile_tokens = num_slots, context_tokens, tile_tokens
        self.max_targets = 8
        self.targets: dict[int, tuple[int, Sequence[int]]] = {}
        self.held: list[list[int]] = [[] for _ in range(num_slots)]
        self.passes: list[list[tuple[int, int]]] = []
        self.num_tiled = 0
        self.copies: list[tuple[int, int]] = []
        self.abort_next = False

    def decode(self, chunks: Sequence[Chunk], adapter: str | None) -> bool:
        aborted, self.abort_next = self.abort_next, False
        for chunk in chunks:
            assert len(self.held[chunk.slot]) == chunk.start, "a chunk must append to what its slot holds"
            self.held[chunk.slot] += chunk.tokens
            assert len(self.held[chunk.slot]) <= self.context_tokens
        self.targets = {chunk.slot: (chunk.start, chunk.targets) for chunk in chunks}
        assert sum(len(chunk.targets) for chunk in chunks) <= self.max_targets
        self.passes.append([(chunk.slot, len(chunk.tokens)) for chunk in chunks])
        self._check_shapes(chunks)
        return not aborted

    def _check_shapes(self, chunks: Sequence[Chunk]) -> None:
        tiled = [chunk for chunk in chunks if chunk.tiled]
        self.num_tiled += sum(len(chunk.tokens) for chunk in tiled)
        assert not tiled or len(chunks) == 1
        assert all(len(chunk.tokens) >= (self.tile_tokens or 0) for chunk in tiled)
        if self.tile_tokens is not None and not tiled:
            sizes = [len(chunk.tokens) for chunk in chunks]
            assert all(size < self.tile_tokens and size % 2 == 1 for size in sizes)
            assert all(len(chunk.tokens) == 1 for chunk in chunks if chunk.wants_output)
            assert all(len(chunk.targets) == len(chunk.tokens) for chunk in chunks if len(chunk.targets) > 1)

    def sample(self, slot: int, sampler: Sampler) -> tuple[int, TokenLogprob | None]:
        return expected_token(self.held[slot]), None

    def score(self, slot: int, num_top: int) -> list[TokenLogprob]:
        """How likely a token is: minus what would be expected there."""
        start, targets = self.targets[slot]
        held = self.held[slot]
        likely = (expected_token(held[: start + index + 1]) for index in range(len(targets)))
        return [
            TokenLogprob(token, -float(each), dict.fromkeys(range(num_top), 0.0))
            for token, each in zip(targets, likely, strict=True)
        ]

    def truncate(self, slot: int, num_tokens: int) -> None:
        del self.held[slot][num_tokens:]

    def copy(self, source: int, target: int) -> None:
        self.copies.append((source, target))
        self.held[target] = list(self.held[source])

    def abort(self) -> None:
        self.abort_next = True


class FakeVocabulary:
    def is_end(self, token: int) -> bool:
        return token == END

    def piece(self, token: int) -> bytes:
        return f"{token} ".encode()


class FakeSampler:
    def __init__(self) -> None:
        self.num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


def expected_token(held: Sequence[int]) -> int:
    return sum(held) % 97


def expected_answer(prompt: Sequence[int], max_tokens: int) -> tuple[int, ...]:
    held, answer = list(prompt), []
    while len(answer) < max_tokens and (token := expected_token(held)) != END:
        answer.append(token)
        held.append(token)
    return tuple(answer)


def job(
    prompt: Sequence[int],
    *,
    name: str = "a",
    deadline_s: float | None = None,
    now_s: float | None = None,
    scores_prompt: bool = False,
    **sampling: object,
) -> Job:
    settings = Sampling(**sampling)  # type: ignore[arg-type]
    request = Request(name, tuple(prompt), settings, deadline_s, scores_prompt=scores_prompt)
    return Job(request, Stream(request), FakeSampler(), time.monotonic() if now_s is None else now_s)


def run(scheduler: Scheduler, limit: int = 10_000) -> None:
    for _ in range(limit):
        if scheduler.num_jobs == 0:
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")
