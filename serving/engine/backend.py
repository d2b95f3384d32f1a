"""The seam between the scheduler and what computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.engine.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens to append to one slot's sequence in the next forward pass."""

    slot: int
    start: int
    """Position of the first token; equals the length of what the slot holds."""
    tokens: Sequence[int]
    wants_output: bool
    """Whether a token will be sampled after the last one."""
    tiled: bool
    """Whether these are tokens of a long prompt, to be computed by themselves; see `Backend.tile_tokens`."""
    targets: Sequence[int] = ()
    """What follows the chunk's first tokens, each, where it is wanted how likely that was."""


class Sampler(Protocol):
    """A request's sampling state."""

    def close(self) -> None: ...


class Backend(Protocol):
    """Sequences in slots, and one forward pass at a time over any of them. Used from one thread only, but for
    `abort`."""

    num_slots: int
    context_tokens: int
    max_targets: int
    """Most targets of the chunks of one pass together."""
    tile_tokens: int | None
    """If set: a token is computed the same to the last digit whatever else is in its pass, in each of two
    ways that differ from one another. One is a pass of a single `tiled` chunk of at least so many tokens; the
    other any pass of chunks that each have fewer, an odd number of them, and want no output unless it is
    one, or each of its tokens has a target."""

    def decode(self, chunks: Sequence[Chunk], adapter: str | None) -> bool:
        """Append the chunks, which are ordered by slot. False if aborted: then the caller truncates every
        slot in it."""

    def sample(self, slot: int, sampler: Sampler) -> tuple[int, TokenLogprob | None]:
        """The next token of a slot whose chunk in the latest pass wanted an output."""

    def score(self, slot: int, num_top: int) -> list[TokenLogprob]:
        """The targets of the slot's chunk in the latest pass, with the `num_top` likeliest in their place."""

    def truncate(self, slot: int, num_tokens: int) -> None:
        """Forget the slot's tokens from position `num_tokens` on."""

    def copy(self, source: int, target: int) -> None:
        """Make the target slot hold what the source slot holds."""

    def abort(self) -> None:
        """End the running forward pass early, from another thread; without effect if none runs."""


class Vocabulary(Protocol):
    """What the scheduler has to know of a token."""

    def is_end(self, token: int) -> bool: ...

    def piece(self, token: int) -> bytes: ...
