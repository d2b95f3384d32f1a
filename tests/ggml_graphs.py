"""Single operations of ggml, computed on the CPU as a model's graph does: what kernels are compared on."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np

F32, F16, Q8_0, Q6_K = 0, 1, 8, 14
BLOCK = 32
Q8_0_DTYPE = np.dtype([("scale", "<f2"), ("numbers", "i1", BLOCK)])
Q6_K_DTYPE = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("scale", "<f2")])
_NUMBERS_OF = {Q8_0: BLOCK, Q6_K: 256}
_MEMORY_BYTES = 256 << 20
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """One graph of one operation after the other, each with new memory."""

    computed_s = 0.0
    """The last graph's."""

    def __init__(self) -> None:
        from llama_cpp._ggml import libggml

        from serving.engine.llamacpp import library

        library.start()
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "ggml_init": (_POINTER, [_InitParams]),
            "ggml_free": (None, [_POINTER]),
            "ggml_aligned_malloc": (_POINTER, [ctypes.c_size_t]),
            "ggml_aligned_free": (None, [_POINTER, ctypes.c_size_t]),
            "ggml_new_tensor_4d": (_POINTER, [_POINTER, ctypes.c_int] + [_SIZE] * 4),
            "ggml_get_data": (_POINTER, [_POINTER]),
            "ggml_view_4d": (_POINTER, [_POINTER, _POINTER] + [_SIZE] * 4 + [ctypes.c_size_t] * 4),
            "ggml_cont": (_POINTER, [_POINTER] * 2),
            "ggml_flash_attn_ext": (_POINTER, [_POINTER] * 5 + [ctypes.c_float] * 3),
            "ggml_mul_mat": (_POINTER, [_POINTER] * 3),
            "ggml_new_graph": (_POINTER, [_POINTER]),
            "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
            "ggml_graph_compute_with_ctx": (ctypes.c_int, [_POINTER, _POINTER, ctypes.c_int]),
        }
        for name, (result, arguments) in signatures.items():
            setattr(self, name, ctypes.CFUNCTYPE(result, *arguments)((name, libggml)))

    def seconds(self, operation: Callable[[], Any]) -> float:
        """What an operation's graph takes to compute, without what is around it."""
        operation()
        return self.computed_s

    def attention(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        mask: Any,
        *,
        threads: int = 1,
        cap: float = 0.0,
        first: int | None = None,
    ) -> Any:
        """queries (sequences, heads, tokens, head) f32; keys, values (sequences, key heads, keys, head) f16;
        mask (sequences, 1, tokens, keys) f16 or None. Returns (sequences, tokens, heads, head). `first`: keys
        and values are views of a cache of more sequences, from this one on."""
        scale = queries.shape[-1] ** -0.5
        tensors = [(queries, F32), (keys, F16), (values, F16)] + ([(mask, F16)] if mask is not None else [])

        def build(context: Any, *made: Any) -> Any:
            q, k, v, m = (*made, None)[:4]
            if first is not None:
                k, v = (self._sequences(context, each, keys.shape, first, len(queries)) for each in (k, v))
                q = self.ggml_cont(context, q)  # attention is never a graph's first operation
            return self.ggml_flash_attn_ext(context, q, k, v, m, scale, 0.0, cap)

        sequences, heads, tokens, _ = queries.shape
        return self._compute(tensors, build, (sequences, tokens, heads, values.shape[-1]), threads)

    def _sequences(self, context: Any, cache: Any, shape: tuple[int, ...], first: int, count: int) -> Any:
        """A view of `count` of a cache's sequences, of f16, as llama.cpp has it."""
        _, heads, num_keys, head = shape
        strides = [2 * head, 2 * head * num_keys, 2 * head * num_keys * heads]
        return self.ggml_view_4d(context, cache, head, num_keys, heads, count, *strides, first * strides[-1])

    def product(self, weights: Any, rows: Any, *, threads: int = 1) -> Any:
        """weights (columns, blocks) of Q8_0_DTYPE or Q6_K_DTYPE, rows (rows, n) f32: (rows, columns)."""
        kind = Q8_0 if weights.dtype == Q8_0_DTYPE else Q6_K
        shape = rows.shape[0], weights.shape[0]
        return self._compute([(weights, kind), (rows, F32)], self.ggml_mul_mat, shape, threads)

    def _compute(self, arrays: Any, build: Any, shape: tuple[int, ...], threads: int) -> Any:
        context = self.ggml_init(_InitParams(_MEMORY_BYTES, None, False))
        try:
            made = []
            for array, kind in arrays:
                array = np.ascontiguousarray(array)
                sizes = [*reversed(array.shape)]
                sizes[0] *= _NUMBERS_OF.get(kind, 1)
                made.append(self.ggml_new_tensor_4d(context, kind, *sizes, *[1] * (4 - len(sizes))))
                ctypes.memmove(self.ggml_get_data(made[-1]), array.ctypes.data, array.nbytes)
            out = build(context, *made)
            graph = self.ggml_new_graph(context)
            self.ggml_build_forward_expand(graph, out)
            began_s = time.perf_counter()
            assert self.ggml_graph_compute_with_ctx(context, graph, threads) == 0
            self.computed_s = time.perf_counter() - began_s
            found = np.empty(shape, np.float32)
            ctypes.memmove(found.ctypes.data, self.ggml_get_data(out), found.nbytes)
            return found
        finally:
            self.ggml_free(context)
