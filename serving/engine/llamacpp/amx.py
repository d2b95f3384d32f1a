"""Keeping llama.cpp off AMX where its build of the AMX kernels is broken.

GCC 12 drops the stores to the tile configuration before `ldtilecfg` as dead, so a llama.cpp that it has built
for a processor with AMX ends the process at its first batch of two tokens. Builds with `-fno-tree-dse
-fno-dse`, GCC 14 or clang are sound, and their AMX is worth having. `gguf_check` finds out in a child process
which one it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SWITCH = "SERVING_ENGINE_NO_AMX"
"""Environment variable: when set to 1, llama.cpp runs without AMX. Child processes inherit it."""

_ALTERNATE_STACK_BYTES = (
    8192  # below what a signal frame with AMX tiles needs (11 KiB), above what one without does
)


def has_amx() -> bool:
    """Whether this processor has AMX, as the kernel says."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


@contextlib.contextmanager
def kept_off() -> Iterator[None]:
    """While llama.cpp looks for its kernels here for the first time, make the kernel refuse it AMX, if the
    switch is set.

    The kernel grants a process AMX only while no thread has an alternate signal stack that is too small for
    it (Linux, arch_prctl ARCH_REQ_XCOMP_PERM: ENOSPC); llama.cpp then takes its AVX-512 kernels.
    """
    if os.environ.get(SWITCH) != "1" or sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(_ALTERNATE_STACK_BYTES)
    small, before = _Stack(ctypes.addressof(buffer), 0, _ALTERNATE_STACK_BYTES), _Stack()
    libc.sigaltstack(ctypes.byref(small), ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))
