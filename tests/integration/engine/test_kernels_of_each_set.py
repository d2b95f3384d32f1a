"""What tests/unit/engine/test_kernels.py asks of the best kernels that this processor can compute with, asked
of the others that it can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.engine.llamacpp import kernels

ROOT = Path(__file__).parents[3]
RUN = """
import sys, pytest
from serving.engine.llamacpp import kernels
kernels.INSTRUCTION_SETS = tuple(each for each in kernels.INSTRUCTION_SETS if each.name == sys.argv[1])
tests = "tests/unit/engine/test_kernels.py"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", tests, "-k", sys.argv[2]]))
"""
OF_THE_KERNELS = "in_use or products or attention or common or keys or zero or scores or number or mask"


def lesser_sets() -> list[kernels.InstructionSet]:
    try:
        kernels.check_platform()
        return kernels.instruction_sets()[1:]
    except kernels.KernelsUnfit:
        return []


@pytest.mark.parametrize("name", [each.name for each in lesser_sets()])
def test_all_of_them_compute_right(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, name, OF_THE_KERNELS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 100
