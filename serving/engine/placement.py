"""Which slot a waiting prompt goes to, so that what prompts share is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from serving.engine.slots import Job, Slot, common_tokens

GAP_ROWS = 3
"""What a gap between two busy slots costs a pass at most, in rows: the weights are read once more. Narrower
ones cost a row a slot: the backend fills them."""
TYPICAL_PASSES = 64
"""Passes that an answer is expected to take, at most: a place is chosen before its length is known."""
TOKENS_PER_ROW = 4
"""Tokens of a prompt, of which many are computed at once, in the time of a row of a pass that writes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Put the job into `slot`, after copying from `source` where there is one, and keep `num_cached`
    tokens. What `slot` holds is copied to `moved_to` before, where there is one."""

    slot: Slot
    num_cached: int
    source: Slot | None = None
    moved_to: Slot | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Have the job of `slot` go on in `gap`. What `gap` holds is copied to `moved_to` before, where there is
    one."""

    slot: Slot
    gap: Slot
    moved_to: Slot | None = None


def place(
    job: Job, slots: Sequence[Slot], *, reuse: bool, min_copy_tokens: int, tile_tokens: int = 0
) -> Placement | None:
    """Where the job goes; None: better wait for a slot that is computing this prompt's start right now.

    Keeping a slot's content costs nothing; copying another slot's costs about as much as computing
    `min_copy_tokens`. The least recently used slot is given up unless an idle one fits well, so that long
    conversations outlive short prompts that happen to share their first words. Where the job's slot would
    lie apart from the busy ones, and passes so be dearer, it gets one beside them, and what that one held
    takes the place of what was to be given up.
    """
    idle = [slot for slot in slots if slot.job is None]
    if not reuse:
        busy = [slot.index for slot in slots if slot.job is not None]
        return Placement(min(idle, key=lambda slot: (_rows_between([*busy, slot.index]), slot.index)), 0)
    # The last token is computed anew, as its logits are needed; of a prompt that is scored those of all are.
    limit = 0 if job.request.scores_prompt else len(job.request.prompt) - 1
    shared = {
        slot.index: min(common_tokens(job.key, slot.key), _alike(job, slot), limit)
        for slot in slots
        if slot.adapter == job.request.adapter
    }
    ready = {
        index: _before_a_tile(min(count, slots[index].num_computed), job, tile_tokens)
        for index, count in shared.items()
    }
    coming = max(
        (
            _before_a_tile(shared[slot.index], job, tile_tokens)
            for slot in slots
            if slot.index in shared and slot.job
        ),
        default=0,
    )
    if coming - max(ready.values(), default=0) >= min_copy_tokens:
        return None
    home = _with_most_kept(slots, idle, ready, min_copy_tokens)
    return _beside_the_busy(home, job, slots, ready, min_copy_tokens)


def _oldest(idle: Sequence[Slot]) -> Slot:
    return min(idle, key=lambda slot: (slot.last_used, slot.index))


def _with_most_kept(
    slots: Sequence[Slot],
    idle: Sequence[Slot],
    ready: Mapping[int, int],
    min_copy_tokens: int,
) -> Placement:
    """Where least is left to compute. `ready`: tokens of the prompt's start that a slot holds."""
    victim = _oldest(idle)
    fitting = [s for s in idle if s is victim or 2 * ready.get(s.index, 0) >= max(1, s.num_computed)]
    keep = max(fitting, key=lambda slot: _worth(slot, ready.get(slot.index, 0)))
    kept = ready.get(keep.index, 0)
    best = max(ready, key=lambda index: ready[index], default=keep.index)
    if ready.get(best, 0) - kept >= min_copy_tokens:
        return Placement(victim, ready[best], slots[best])
    return Placement(keep, kept)


def _beside_the_busy(
    home: Placement, job: Job, slots: Sequence[Slot], ready: Mapping[int, int], min_copy_tokens: int
) -> Placement:
    """The place that saves most, in rows of all passes that the answer is expected to take."""
    busy = [slot.index for slot in slots if slot.job is not None]
    passes = min(job.request.sampling.max_tokens, TYPICAL_PASSES)
    rows = _rows_between([*busy, home.slot.index])
    best, most = home, 0
    for slot in slots:
        if rows == 0 or slot.job is not None or slot is home.slot:
            continue
        moved = slot.num_computed >= min_copy_tokens and not slot.is_spare
        other = _in_slot(slot, home, slots, ready.get(slot.index, 0), min_copy_tokens, moved=moved)
        copies = (other.moved_to is not None) + (other.source is not None) - (home.source is not None)
        saved = (rows - _rows_between([*busy, slot.index])) * passes
        saved -= (copies * min_copy_tokens + home.num_cached - other.num_cached) // TOKENS_PER_ROW
        if saved > most or (saved == most > 0 and slot.last_used < best.slot.last_used):
            best, most = other, saved
    return best


def inward(slots: Sequence[Slot], min_copy_tokens: int) -> Move | None:
    """The move of an outermost busy slot into a gap between the others that saves most; None: none does."""
    busy = [slot for slot in slots if slot.job is not None]
    indices = [slot.index for slot in busy]
    rows = _rows_between(indices)
    if rows == 0:
        return None
    oldest = _oldest([slot for slot in slots if slot.job is None])
    best, most = None, 0
    for slot, others in ((busy[0], indices[1:]), (busy[-1], indices[:-1])):
        assert slot.job is not None
        written = len(slot.tokens) - slot.num_prompt
        passes = min(slot.job.request.sampling.max_tokens - written, TYPICAL_PASSES)
        for gap in slots[indices[0] : indices[-1]]:
            if gap.job is not None:
                continue
            moved = gap.num_computed >= min_copy_tokens and not (gap is oldest or gap.is_spare)
            saved = (rows - _rows_between([*others, gap.index])) * passes
            saved -= (1 + moved) * min_copy_tokens // TOKENS_PER_ROW
            if saved > most:
                best, most = Move(slot, gap, oldest if moved else None), saved
    return best


def _in_slot(
    slot: Slot, home: Placement, slots: Sequence[Slot], ready: int, min_copy_tokens: int, *, moved: bool
) -> Placement:
    """The same job in another idle slot. What is given up for it is what the job's own slot would have lost,
    or, where that one's content goes on in `slot`, what has lain idle longest."""
    if home.num_cached - ready < min_copy_tokens:
        return Placement(slot, ready, None, home.slot if moved else None)
    if home.source is not None:
        return Placement(slot, home.num_cached, home.source, home.slot if moved else None)
    oldest = _oldest([other for other in slots if other.job is None and other is not home.slot])
    return Placement(slot, home.num_cached, home.slot, oldest if moved and oldest is not slot else None)


def _rows_between(indices: Sequence[int]) -> int:
    """What the gaps between busy slots cost each pass, in rows."""
    ordered = sorted(indices)
    return sum(min(right - left - 1, GAP_ROWS) for left, right in pairwise(ordered))


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
