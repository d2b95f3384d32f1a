"""Our own kernels for llama.cpp's hottest loops, on x86 processors under Linux: products with Q4_0, Q4_K,
Q6_K and Q8_0 weights, and fused attention over f16. They are there for AVX-512 with VNNI (Intel's servers
since Ice Lake, AMD since Zen 4), for AVX-VNNI (Intel's laptops and desktops since Alder Lake) and for AVX2
(Intel since Haswell, AMD since Zen).

They are compiled for the installed llama-cpp-python by `python -m serving.engine.llamacpp.kernels` (`make
setup` and the images do it), lie beside its libraries, and take the place of its functions in this process
when the library is started. Where they were not built, or cannot be used, llama.cpp computes with its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

SWITCH = "SERVING_ENGINE_NO_KERNELS"
"""Environment variable: when set to 1, llama.cpp keeps its own kernels. Child processes inherit it."""
COMMAND = "python -m serving.engine.llamacpp.kernels"
SOURCES = Path(__file__).parent
TRIED_VERSIONS = ("0.3.36",)
"""Of llama-cpp-python: the kernels read llama.cpp's own layouts, which other versions may change."""
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")
_NUM_FUNCTIONS = 9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstructionSet:
    """What the kernels are compiled for.

    needed: what the processor must have, as /proc/cpuinfo calls it. optimisation: further flags.
    """

    name: str
    needed: frozenset[str]
    optimisation: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """For the compiler."""
        return (*_FLAGS, *self.optimisation, *(f"-m{each.replace('_', '')}" for each in sorted(self.needed)))


_IN_ORDER = ("-fno-tree-ter", "-fno-tree-reassoc")
"""Else GCC makes all products before it adds any up, and has not the registers for it."""
AVX2 = InstructionSet("avx2", frozenset({"avx2", "fma", "f16c"}), _IN_ORDER)
AVX_VNNI = InstructionSet("avxvnni", AVX2.needed | {"avx_vnni"}, _IN_ORDER)
AVX512 = InstructionSet(
    "avx512", AVX2.needed | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
)
INSTRUCTION_SETS = (AVX512, AVX_VNNI, AVX2)
"""The best first. All are compiled, as an image may run on another processor than it is built on."""


@dataclass(frozen=True)
class State:
    """Whether this process computes with the kernels, for which instructions, and if not, why."""

    in_use: bool
    reason: str = ""
    instruction_set: str = ""


class KernelsUnfit(Exception):
    """Why the kernels cannot be built or used here, in a line."""


def check_platform() -> None:
    """Raises KernelsUnfit where they cannot be built: another system, or another llama.cpp."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise KernelsUnfit(
            f"they are for Linux on x86, and this is {platform.system()} on {platform.machine()}"
        )
    try:
        version = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        raise KernelsUnfit("llama-cpp-python is not installed") from None
    if version not in TRIED_VERSIONS:
        raise KernelsUnfit(f"llama-cpp-python {version}: tried with {', '.join(TRIED_VERSIONS)} only")


def instruction_sets() -> list[InstructionSet]:
    """Those that this processor has, as the kernel says, the best first; raises KernelsUnfit where it has
    none."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text("ascii", "replace"), re.MULTILINE)
    has = set(found[1].split() if found else ())
    usable = [each for each in INSTRUCTION_SETS if each.needed <= has]
    if not usable:
        raise KernelsUnfit(f"this processor has no {', '.join(sorted(INSTRUCTION_SETS[-1].needed - has))}")
    return usable


def best_built() -> InstructionSet:
    """Of those that this processor has; raises KernelsUnfit where it has none, or none was built."""
    for each in instruction_sets():
        if library_path(each).exists():
            return each
    raise KernelsUnfit(f"ours were not built: {COMMAND}")


def library_path(of: InstructionSet) -> Path:
    """Where the compiled kernels are, or would be: beside llama.cpp's libraries, named by what they are made
    of."""
    return package_folder() / "lib" / f"libserving-kernels-{of.name}-{_fingerprint(of)}.so"


def package_folder() -> Path:
    """Of llama-cpp-python, which is not imported for it."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise KernelsUnfit("llama-cpp-python is not installed")
    return Path(spec.origin).parent


def source_files() -> list[Path]:
    return sorted(SOURCES.glob("*.cpp"))


def start() -> None:
    """Takes llama.cpp's functions over, once its library is loaded; further calls do nothing."""
    reason = state().reason
    if reason:
        logger.info("llama.cpp computes with its own kernels: %s", reason)


@functools.cache
def state() -> State:
    """Loads and installs the kernels at the first call; llama.cpp's CPU library must be loaded."""
    try:
        _install()
    except (KernelsUnfit, OSError) as error:
        return State(False, str(error))
    return State(True, instruction_set=best_built().name)


@contextmanager
def switched_off() -> Iterator[None]:
    """llama.cpp's own kernels for a while, for comparisons; nothing may be computing meanwhile."""
    library = _library() if state().in_use else None
    try:
        if library is not None:
            library.serving_kernels_enable(False)
        yield
    finally:
        if library is not None:
            library.serving_kernels_enable(True)


def share(origins: Any, tile_tokens: int) -> None:
    """Says where the tiles of a cache come from that this thread computes with next, until the next call.

    origins: int32, shape (slots, tiles), which must not go before that: equal numbers, other than 0, in a
    column mark equal tiles of `tile_tokens` tokens. Or None: each slot's are its own. Of no effect where the
    kernels are not in use.
    """
    if not state().in_use:
        return
    if origins is None:
        _library().serving_kernels_share(None, 0, 0, tile_tokens)
        return
    used = _library().serving_kernels_share(origins.ctypes.data, *origins.shape, tile_tokens)
    assert used, f"our kernel takes other tiles than of {tile_tokens} keys"


def _install() -> None:
    if os.environ.get(SWITCH) == "1":
        raise KernelsUnfit(f"{SWITCH}=1")
    check_platform()
    taken = _library().serving_kernels_install(os.fsencode(_cpu_library()))
    if taken != _NUM_FUNCTIONS:
        raise KernelsUnfit(
            f"this build of llama.cpp lets {taken} of {_NUM_FUNCTIONS} functions be taken over"
        )


def _cpu_library() -> str:
    """The one that this process computes with, of several builds for unlike processors."""
    maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    found = sorted(set(re.findall(r"/.*/libggml-cpu[^/\n]*$", maps, re.MULTILINE)))
    if len(found) != 1:
        raise KernelsUnfit(f"{len(found)} libraries called libggml-cpu are loaded")
    return str(found[0])


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(library_path(best_built())))
    library.serving_kernels_install.argtypes = [ctypes.c_char_p]
    library.serving_kernels_enable.argtypes = [ctypes.c_bool]
    library.serving_kernels_share.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    library.serving_kernels_share.restype = ctypes.c_bool
    return library


def _fingerprint(of: InstructionSet) -> str:
    digest = hashlib.sha256()
    header = package_folder().parent / "include" / "ggml.h"
    for file in (*source_files(), *sorted(SOURCES.glob("*.h")), header):
        digest.update(file.read_bytes() if file.exists() else b"")
    digest.update(" ".join((*of.flags, *TRIED_VERSIONS)).encode())
    return digest.hexdigest()[:12]
