"""Ray clusters for tests, on this machine."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OTHER = """
import ray, sys
ray.init(address="local", num_cpus=1, log_to_driver=False, logging_level="ERROR")
print("up", flush=True)
sys.stdin.read()
"""


def start_ray() -> None:
    """Starts one of two logical CPUs, and ends the one before: a new command would not have it either."""
    import ray

    from ray_jobs.stages import cluster

    ray.shutdown()
    cluster.connect(cpus_here=2)


@contextmanager
def another_cluster() -> Iterator[None]:
    """One of somebody else's, for as long as the block lasts."""
    command = [sys.executable, "-c", OTHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield
        finally:
            process.stdin.close()
