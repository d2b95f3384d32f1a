"""Which parts of slots' caches are copies of each other: attention reads them once for all of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from serving.engine.llamacpp import kernels

TILE_TOKENS = 64
"""Keys that our kernel for attention takes at a time (`KEYS` in attention_tile.h)."""


class Origins:
    """For each slot and each tile of its cache a number: equal numbers, other than 0, mark equal tiles.

    Counts on what llama.cpp does where each slot has a cache of its own, without a sliding window: the token
    at position p is in cell p, and a copy is one of all cells (`llama_kv_cache::find_slot` and `seq_cp`).
    """

    def __init__(self, num_slots: int, context_tokens: int) -> None:
        self._numbers = np.zeros((num_slots, context_tokens // TILE_TOKENS), np.int32)
        self._num_copies = 0

    def copied(self, source: int, target: int, num_tokens: int) -> None:
        """The target's cache is now the source's, which holds so many tokens."""
        self._num_copies += 1
        full = self._numbers[source, : num_tokens // TILE_TOKENS]
        full[full == 0] = self._num_copies
        self._numbers[target] = 0
        self._numbers[target, : len(full)] = full

    def truncated(self, slot: int, num_tokens: int) -> None:
        """The slot's cache holds no more than so many tokens: what comes after is its own."""
        self._numbers[slot, num_tokens // TILE_TOKENS :] = 0

    def shared(self, slots: Sequence[int]) -> bool:
        """Whether any of these have a beginning in common."""
        first = self._numbers[slots, 0] if self._numbers.shape[1] else np.zeros(0, np.int32)
        first = np.sort(first[first != 0])
        return bool((first[1:] == first[:-1]).any())

    @contextmanager
    def told(self, slots: Sequence[int]) -> Iterator[None]:
        """Our kernel knows meanwhile, on this thread, where any of these slots have something in common."""
        if not self.shared(slots):
            yield
            return
        kernels.share(self._numbers, TILE_TOKENS)
        try:
            yield
        finally:
            kernels.share(None, TILE_TOKENS)
