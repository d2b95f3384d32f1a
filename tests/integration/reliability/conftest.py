from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two logical CPUs on this machine."""
    import ray

    from ray_jobs.stages import cluster

    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    cluster.quiet()
    yield
    ray.shutdown()
