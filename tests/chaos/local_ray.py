"""A Ray cluster for tests, on this machine."""


def start_ray() -> None:
    """Starts one of two logical CPUs, and ends the one before: a new command would not have it either."""
    import ray

    from ray_jobs.stages import cluster

    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    cluster.quiet()
