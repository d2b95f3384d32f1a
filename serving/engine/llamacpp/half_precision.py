"""Was llama.cpp compiled to sum attention's values in half precision?

Where the compiler may use AVX512-FP16 (`-march=native` on Intel since Sapphire Rapids), ggml adds the values
of fused attention 128 numbers at a time in f16, and what is left over number by number, in software: all of a
head of 64 (`GGML_F16_STEP` in ggml/src/ggml-cpu/simd-mappings.h, `ggml_vec_mad_f16` in vec.h). Answers then
take up to 2.5 times as long. `make setup` compiles with `-mno-avx512fp16`; a plain `pip install` does not.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from serving.engine.llamacpp import kernels

_HEAD = 128
"""One step of the loop in question."""
_F32, _F16 = 0, 1
_MEMORY_BYTES = 4 << 20
_KEYS = (0.0, -1.2)
"""Two keys' products with the query: the second value weighs exp(-1.2), which is no half-precision number."""
SLOW_BUILD = (
    "compiled with AVX512-FP16: attention takes up to 2.5 times as long. Build llama-cpp-python with "
    "CXXFLAGS='-fno-tree-dse -fno-dse -mno-avx512fp16', as `make setup` does"
)

logger = logging.getLogger(__name__)


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@functools.cache
def sums_in_half_precision() -> bool:
    """Computes one head over two keys, and looks how the weight of the second was rounded; says so once.

    A build whose kernels are loaded at run time (GGML_BACKEND_DL) has none with AVX512-FP16, and cannot be
    asked. Nor does it matter where our own kernels compute.
    """
    from llama_cpp._ggml import libggml

    if kernels.state().in_use or not (_processor_can() and hasattr(libggml, "ggml_graph_compute_with_ctx")):
        return False
    values = np.stack([np.zeros(_HEAD), 1 + np.arange(_HEAD) / _HEAD]).astype(np.float16)
    keys = np.zeros((2, _HEAD), np.float16)
    keys[:, 0] = _KEYS
    query = np.zeros((1, _HEAD), np.float32)
    query[0, 0] = 1
    weight = np.exp(np.float32(keys[1, 0]))
    sums = _attend(libggml, query, keys, values) * (1 + weight)
    in_single = (values[1].astype(np.float32) * weight).astype(np.float16)
    in_half = values[1] * np.float16(weight)
    found = bool(_distance(sums, in_half) < _distance(sums, in_single))
    if found:
        logger.warning("this llama.cpp was %s", SLOW_BUILD)
    return found


def _processor_can() -> bool:
    """Whether this processor has AVX512-FP16, as the kernel says; on Linux only."""
    try:
        return "avx512_fp16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _distance(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected.astype(np.float32)).sum())


def _attend(ggml: Any, query: Any, keys: Any, values: Any) -> Any:
    """ggml's fused attention of one head on the CPU: query (1, head) f32, keys and values (2, head) f16."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_init": (pointer, [_InitParams]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, size, size]),
        "ggml_get_data": (pointer, [pointer]),
        "ggml_flash_attn_ext": (pointer, [pointer] * 5 + [ctypes.c_float] * 3),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_graph_compute_with_ctx": (ctypes.c_int, [pointer, pointer, ctypes.c_int]),
    }
    call: dict[str, Any] = {}
    for name, (result, arguments) in signatures.items():
        function = ctypes.CFUNCTYPE(result, *arguments)(
            (name, ggml)
        )  # libggml's own prototypes stay as they are
        call[name] = function
    context = call["ggml_init"](_InitParams(_MEMORY_BYTES, None, False))
    try:
        tensors = []
        for array, kind in ((query, _F32), (keys, _F16), (values, _F16)):
            tensors.append(call["ggml_new_tensor_2d"](context, kind, array.shape[1], array.shape[0]))
            ctypes.memmove(call["ggml_get_data"](tensors[-1]), array.ctypes.data, array.nbytes)
        out = call["ggml_flash_attn_ext"](context, *tensors, None, 1.0, 0.0, 0.0)
        graph = call["ggml_new_graph"](context)
        call["ggml_build_forward_expand"](graph, out)
        call["ggml_graph_compute_with_ctx"](context, graph, 1)
        found = np.empty(_HEAD, np.float32)
        ctypes.memmove(found.ctypes.data, call["ggml_get_data"](out), found.nbytes)
        return found
    finally:
        call["ggml_free"](context)
