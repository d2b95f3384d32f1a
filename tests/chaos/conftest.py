import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import Chaos
from tests.chaos.local_ray import start_ray

os.environ["RAY_AUTH_MODE"] = "token"  # as on a cluster; Ray reads it once, when it is imported


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two logical CPUs on this machine."""
    import ray

    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a pipeline of stubs that nothing happened to."""
    return Chaos(tmp_path_factory.mktemp("unbroken"), real=False, seed=0, mean_s=1e9).unbroken()
