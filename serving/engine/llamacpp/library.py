"""llama.cpp as a library: started once, its log messages in Python's logging."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections import deque

import llama_cpp

from serving.engine.llamacpp import kernels

logger = logging.getLogger(__name__)

_LEVELS = {2: logging.DEBUG, 3: logging.WARNING}  # its warnings are about its own tuning, not the user's
_EXPECTED = "cannot use buft 'CPU_REPACK', fallback to CPU"
"""Said of every matrix of an adapter: only quantised weights are repacked."""
_recent_errors: deque[str] = deque(maxlen=8)


def _receive(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    if level not in _LEVELS:
        return
    message = text.decode("utf-8", "replace").strip()
    if message.endswith(_EXPECTED):
        level = 2
    if level == 3:
        _recent_errors.append(message)
    logger.log(_LEVELS[level], "llama.cpp: %s", message)


_callback = llama_cpp.llama_log_callback(_receive)  # kept alive: native code holds its address


@functools.cache
def start() -> None:
    """Initialise the library; further calls do nothing."""
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _load_variant()
    kernels.start()


def _load_variant() -> None:
    """A build with all CPU variants (GGML_BACKEND_DL) starts with none: the one that fits is loaded here."""
    from llama_cpp._ggml import libggml

    if libggml.ggml_backend_reg_count() == 0:
        libggml.ggml_backend_load_all()


def system_info() -> str:
    """What of the processor llama.cpp uses: `AVX512 = 1 | AVX512_BF16 = 1 | …`."""
    return str(llama_cpp.llama_print_system_info().decode("ascii", "replace"))


def take_errors() -> str:
    """The error messages since the last call, in one line."""
    messages = "; ".join(_recent_errors)
    _recent_errors.clear()
    return messages
