"""The cluster that a run starts for itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NICENESS_OF_A_WORKER = """
import os
from ray_jobs.stages.cluster import connect
connect()
import ray
print(ray.get(ray.remote(lambda: os.nice(0)).remote()), os.nice(0))
"""


@pytest.mark.skipif(not hasattr(os, "nice"), reason="needs POSIX")
def test_workers_have_the_priority_of_the_run() -> None:
    """Ray's default is nice 15, which stands still beside anything else that is busy."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", NICENESS_OF_A_WORKER]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    worker, driver = done.stdout.split()[-2:]
    assert worker == driver
