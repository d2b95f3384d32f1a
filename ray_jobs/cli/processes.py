"""Handing over to another program of this environment."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence


def hand_over(module: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> int:
    """Becomes `python -m module arguments…`; where a process cannot be replaced, waits for a child.

    Returns the exit code, if it returns.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, **(variables or {})}
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(sys.executable, command, environment)
    return subprocess.call(command, env=environment)
