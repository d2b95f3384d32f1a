"""A slot: one sequence's place in the key/value cache, and the answer that is being written there."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from serving.engine.backend import Chunk, Sampler
from serving.engine.stream import Stream
from serving.engine.text import TextStream
from serving.engine.types import Delta, FinishReason, Request, Result, TokenLogprob


@dataclass(slots=True, eq=False)
class Job:
    """A request that waits for a slot, or is in one."""

    request: Request
    stream: Stream
    sampler: Sampler
    submitted_s: float
    """Monotonic clock."""
    key: bytes = b""
    """The prompt's token ids as bytes, for fast comparison."""
    num_tiled: int = 0
    """How many of the prompt's first tokens are computed in `tiled` chunks."""

    def __post_init__(self) -> None:
        self.key = array("i", self.request.prompt).tobytes()

    def expired(self, now_s: float) -> bool:
        limit = self.request.deadline_s
        return limit is not None and now_s - self.submitted_s >= limit

    def unanswered(
        self, reason: FinishReason, now_s: float, *, error: str | None = None, code: str | None = None
    ) -> Result:
        """The result of a request that never got a slot."""
        return Result(
            self.request.id, "", (), reason, len(self.request.prompt), 0, 0, now_s - self.submitted_s, None,
            error=error, error_code=code,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class Slot:
    """`tokens[:num_computed]` are in the cache. While a job runs, `tokens` is its prompt and its answer so
    far."""

    index: int
    job: Job | None = None
    tokens: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    num_tiled: int = 0
    adapter: str | None = None
    text: TextStream = field(default_factory=TextStream)
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    num_streamed: int = 0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    last_used: int = 0
    _key: bytes = b""

    @property
    def key(self) -> bytes:
        """The token ids that the slot holds or, while its prompt is computed, will hold."""
        return self.job.key if self.job is not None else self._key

    @property
    def num_prompt(self) -> int:
        assert self.job is not None
        return len(self.job.request.prompt)

    @property
    def in_prompt(self) -> bool:
        return self.num_computed < self.num_prompt

    def start(self, job: Job, num_cached: int) -> None:
        """Give the slot to a job whose first `num_cached` tokens are in the cache already."""
        self.job, self.tokens = job, list(job.request.prompt)
        self.num_computed = self.num_cached = num_cached
        self.num_tiled, self.adapter = job.num_tiled, job.request.adapter
        self.text = TextStream(job.request.sampling.stop)
        self.logprobs = [] if job.request.sampling.top_logprobs is not None else None
        self.prompt_logprobs = [] if job.request.scores_prompt else None
        self.num_streamed, self.first_token_s = 0, None

    @property
    def in_tiles(self) -> bool:
        """Whether the next token to compute belongs to a `tiled` chunk."""
        return self.num_computed < self.num_tiled

    def release(self, clock: int, *, num_kept: int) -> None:
        """Keep the computed tokens for reuse, so many at most."""
        self.job = None
        self.num_computed = min(self.num_computed, num_kept)
        del self.tokens[self.num_computed :]
        self._key = array("i", self.tokens).tobytes()
        self.last_used = clock

    def forget(self) -> None:
        """The cache no longer holds what the slot held."""
        self.tokens, self._key, self.num_computed = [], b"", 0

    def take_over(self, other: Slot) -> None:
        """Hold what another slot holds: the cache has been copied."""
        self.num_computed, self.num_tiled = other.num_computed, other.num_tiled
        self.tokens = other.tokens[: other.num_computed]
        self._key = array("i", self.tokens).tobytes()
        self.adapter, self.last_used = other.adapter, other.last_used

    def spare(self) -> None:
        """What it holds goes on in another slot: it is the first to be given up."""
        self.last_used = 0

    @property
    def is_spare(self) -> bool:
        return self.last_used == 0

    def next_chunk(self, limit: int) -> Chunk:
        """The next tokens to compute: the rest of the prompt, at most `limit`, or the latest answer token."""
        tokens = self.tokens[self.num_computed : self.num_computed + limit]
        end = self.num_computed + len(tokens)
        scored = self.prompt_logprobs is not None and self.in_prompt
        targets = self.tokens[self.num_computed + 1 : end + 1] if scored else ()
        return Chunk(self.index, self.num_computed, tokens, end == len(self.tokens), self.in_tiles, targets)

    def stream(self, shown: str) -> None:
        """Hand over the text that can be shown now, with what has come since the last time."""
        assert self.job is not None
        if not self.job.stream.wants_deltas:
            return
        answered = len(self.tokens) - self.num_prompt
        tokens = tuple(self.tokens[self.num_prompt + self.num_streamed :])
        logprobs = None if self.logprobs is None else tuple(self.logprobs[self.num_streamed : answered])
        self.num_streamed = answered
        self.job.stream.push(Delta(shown, tokens, logprobs))

    def result(
        self, reason: FinishReason, now_s: float, *, error: str | None = None, code: str | None = None
    ) -> Result:
        assert self.job is not None
        job, answer = self.job, tuple(self.tokens[self.num_prompt :])
        return Result(
            id=job.request.id,
            text=self.text.text,
            tokens=answer,
            finish_reason=reason,
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=self.num_cached,
            num_answer_tokens=len(answer),
            seconds=now_s - job.submitted_s,
            first_token_s=None if self.first_token_s is None else self.first_token_s - job.submitted_s,
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
            prompt_logprobs=None if self.prompt_logprobs is None else tuple(self.prompt_logprobs),
            error=error,
            error_code=code,
        )


def common_tokens(a: bytes, b: bytes) -> int:
    """How many token ids two keys share from their start: binary search, each probe one memory comparison."""
    low, high = 0, min(len(a), len(b)) // _TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if a[low * _TOKEN_BYTES : middle * _TOKEN_BYTES] == b[low * _TOKEN_BYTES : middle * _TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


_TOKEN_BYTES = array("i").itemsize
