from collections.abc import Iterator

import pytest

from tests.chaos.local_ray import start_ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two logical CPUs on this machine."""
    import ray

    start_ray()
    yield
    ray.shutdown()
