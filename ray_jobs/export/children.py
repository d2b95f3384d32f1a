"""Running llama.cpp in a child process, which a bad file or a failed assertion may abort."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ray_jobs.export.errors import ExportError

log = logging.getLogger(__name__)

LIMIT_S = 6 * 3600.0


def run_module(module: str, arguments: Sequence[str]) -> list[str]:
    """Lines on stdout of `python -m module arguments`. Raises ExportError with its last words if it fails."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            # Threads that wait give their core away: on a busy machine spinning costs minutes.
            env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{module}: took longer than {LIMIT_S:g} s") from error
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ExportError(f"{module}: {how}: {words[-1] if words else 'no message'}")
    return done.stdout.decode("utf-8", "replace").splitlines()
