"""Compiling the kernels for the installed llama-cpp-python."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.engine.llamacpp import kernels
from serving.engine.llamacpp.kernels import InstructionSet, KernelsUnfit

_LIMIT_S = 600
logger = logging.getLogger(__name__)
_NO_FALSE_ALARMS = ("-Wno-maybe-uninitialized", "-Wno-uninitialized")  # GCC 12, about its own header


def build() -> list[Path]:
    """Compiles the libraries that are not there, each put in place at once; those of other versions go.

    An instruction set that the compiler does not know is left out with a warning. Raises KernelsUnfit where
    the kernels cannot be used, or no compiler is found, or none can be compiled.
    """
    kernels.check_platform()
    include = kernels.package_folder().parent / "include"
    if not (include / "ggml.h").exists():
        raise KernelsUnfit(f"{include} has no ggml.h: reinstall llama-cpp-python from source")
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(lambda each: _build(each, include), kernels.INSTRUCTION_SETS))
    made = [result for result in results if isinstance(result, Path)]
    failures = [result for result in results if isinstance(result, KernelsUnfit)]
    if not made:
        raise failures[0]
    for failure in failures:
        logger.warning("%s", failure)
    for old in made[0].parent.glob("libserving-kernels-*.so"):
        if old not in made:
            old.unlink(missing_ok=True)
    return made


def _build(instruction_set: InstructionSet, include: Path) -> Path | KernelsUnfit:
    target = kernels.library_path(instruction_set)
    try:
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                made = Path(folder) / target.name
                _compile(made, instruction_set, include)
                os.replace(made, target)
    except KernelsUnfit as failure:
        return failure
    return target


def _compile(target: Path, instruction_set: InstructionSet, include: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise KernelsUnfit("no C++ compiler: install one (g++), or name it in CXX")
    files = [str(file) for file in kernels.source_files()]
    command = [
        *compiler.split(),
        *instruction_set.flags,
        *_NO_FALSE_ALARMS,
        f"-I{include}",
        "-o",
        str(target),
        *files,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnfit(f"{compiler}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["failed"]
        raise KernelsUnfit(f"{compiler}: {lines[0]}")


def main() -> int:
    """`python -m serving.engine.llamacpp.kernels`."""
    try:
        print(*build(), sep="\n")  # noqa: T201
    except (KernelsUnfit, OSError) as error:
        print(f"llama.cpp keeps its own kernels: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0
