"""Joining the Ray cluster that is there, or starting one on this machine."""

import logging
import os

log = logging.getLogger(__name__)


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS (a submitted job has it set); else starts one here.

    RAY_ADDRESS=auto joins the one that `ray start` began on this machine. Without it none is looked for:
    the file that names the last such cluster outlives it, and Ray then waits minutes for a head that is gone.

    The dashboard stays on: without its State API, Ray Tune cannot free the placement group of a trial
    that was stopped early, and the next trial waits for ever (ray 2.60). Token authentication is left to
    ray.init, which turns it on for the clusters that it starts and writes the token.
    """
    # Read when Ray is imported. A trial takes five small processes, which is what this warning is about.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    quiet()
    resources = ray.cluster_resources()
    log.info("ray      %g CPUs, %g GPUs on %d node(s)", num_cpus(), resources.get("GPU", 0), len(ray.nodes()))


def quiet() -> None:
    """Ray's libraries say what goes wrong; how far a stage is, it says itself."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def usable_cpus() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def num_cpus() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))
