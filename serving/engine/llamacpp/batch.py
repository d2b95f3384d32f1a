"""A pass of tokens as llama.cpp takes it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from serving.engine.backend import Chunk


class Batch:
    """A llama_batch whose arrays are NumPy's: filled by slices, not token by token."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._slots = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._num_slots = np.ones(capacity, np.int32)
        first = self._slots.ctypes.data
        addresses = np.arange(capacity, dtype=np.uintp) * self._slots.itemsize + first
        self._slot_pointers = np.ascontiguousarray(addresses)
        self.native = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._num_slots, ctypes.c_int32),
            seq_id=_pointer(self._slot_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def fill(
        self, chunks: Sequence[Chunk], *, first_too: bool
    ) -> tuple[dict[int, int], dict[int, tuple[int, Sequence[int]]]]:
        """Write the chunks; returns the output row of each slot that wants one, and the first row and the
        targets of each that is scored. `first_too`: each chunk's first token gets an output as well."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: dict[int, int] = {}
        firsts: list[int] = []
        scored: dict[int, tuple[int, Sequence[int]]] = {}
        for chunk in chunks:
            count = len(chunk.tokens)
            firsts.append(len(tokens))
            tokens += chunk.tokens
            positions += range(chunk.start, chunk.start + count)
            slots += [chunk.slot] * count
            if chunk.wants_output:
                rows[chunk.slot] = len(tokens) - 1
            if chunk.targets:
                scored[chunk.slot] = firsts[-1], chunk.targets
        count = len(tokens)
        self._tokens[:count], self._positions[:count], self._slots[:count] = tokens, positions, slots
        self._outputs[:count] = 0
        self._outputs[list(rows.values())] = 1
        if first_too:
            self._outputs[firsts] = 1
        for first, targets in scored.values():
            self._outputs[first : first + len(targets)] = 1
        self.native.n_tokens = count
        return rows, scored


def _pointer(array: Any, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
