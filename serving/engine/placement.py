"""Which slot a waiting prompt goes to, so that what prompts share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.engine.slots import Job, Slot, common_tokens


@dataclass(frozen=True, slots=True)
class Placement:
    """Put the job into `slot`, after copying from `source` where there is one, and keep `num_cached`
    tokens."""

    slot: Slot
    num_cached: int
    source: Slot | None = None


def place(
    job: Job, slots: Sequence[Slot], *, reuse: bool, min_copy_tokens: int, tile_tokens: int = 0
) -> Placement | None:
    """Where the job goes; None: better wait for a slot that is computing this prompt's start right now.

    Keeping a slot's content costs nothing; copying another slot's costs about as much as computing
    `min_copy_tokens`. The least recently used slot is given up unless an idle one fits well, so that long
    conversations outlive short prompts that happen to share their first words.
    """
    idle = [slot for slot in slots if slot.job is None]
    victim = min(idle, key=lambda slot: (slot.last_used, slot.index))
    if not reuse:
        return Placement(victim, 0)
    limit = len(job.request.prompt) - 1  # the last token is computed anew: its logits are needed
    shared = {
        slot.index: min(common_tokens(job.key, slot.key), _alike(job, slot), limit)
        for slot in slots
        if slot.adapter == job.request.adapter
    }
    ready = {
        index: _before_a_tile(min(count, slots[index].num_computed), job, tile_tokens)
        for index, count in shared.items()
    }
    fitting = [s for s in idle if s is victim or 2 * ready.get(s.index, 0) >= max(1, s.num_computed)]
    keep = max(fitting, key=lambda slot: _worth(slot, ready.get(slot.index, 0)))
    kept = ready.get(keep.index, 0)
    coming = max(
        (
            _before_a_tile(shared[slot.index], job, tile_tokens)
            for slot in slots
            if slot.index in shared and slot.job
        ),
        default=0,
    )
    best = max(ready, key=lambda index: ready[index], default=keep.index)
    if coming - max(kept, ready.get(best, 0)) >= min_copy_tokens:
        return None
    if ready.get(best, 0) - kept >= min_copy_tokens:
        return Placement(victim, ready[best], slots[best])
    return Placement(keep, kept)


def _alike(job: Job, slot: Slot) -> int:
    """How many first tokens of the two are computed in the same way: in tiles, or as rows."""
    ways = job.num_tiled, slot.num_tiled if slot.job is None else slot.job.num_tiled
    return len(job.request.prompt) if ways[0] == ways[1] else min(ways)


def _before_a_tile(num_cached: int, job: Job, tile_tokens: int) -> int:
    """At most so many that what is left to compute in tiles fills one."""
    last = job.num_tiled - tile_tokens
    return last if last < num_cached < job.num_tiled else num_cached


def _worth(slot: Slot, num_kept: int) -> tuple[int, int, int, int]:
    """The more it keeps the better; then the less is lost, the longer it has lain idle, the further left."""
    return num_kept, num_kept - slot.num_computed, -slot.last_used, -slot.index
