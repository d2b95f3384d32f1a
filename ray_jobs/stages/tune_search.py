"""A config's search in Ray Tune's terms."""

import logging
import math
from typing import Any

from ray_jobs.config import Config
from ray_jobs.errors import ConfigError
from ray_jobs.search.settings import SEARCHABLE, Dimension, SearchSettings
from ray_jobs.search.trials import HIGHER_IS_BETTER, METRICS, most_steps
from ray_jobs.stages import cluster

log = logging.getLogger(__name__)


def param_space(search: SearchSettings) -> dict[str, Any]:
    return {name: domain(name, dimension) for name, dimension in search.space.items()}


def domain(name: str, dimension: Dimension) -> Any:
    """Tune's own domain of one searched setting."""
    import ray.tune

    values: Any = dimension.values
    whole = SEARCHABLE[name] is int
    match dimension.kind:
        case "uniform":
            return ray.tune.randint(values[0], values[1] + 1) if whole else ray.tune.uniform(*values)
        case "loguniform":
            return ray.tune.lograndint(values[0], values[1] + 1) if whole else ray.tune.loguniform(*values)
        case "choice":
            return ray.tune.choice(list(values))
        case "grid":
            return ray.tune.grid_search(list(values))


def tune_config(config: Config) -> Any:
    import ray.tune

    search = config.search
    higher = HIGHER_IS_BETTER[search.objective]
    return ray.tune.TuneConfig(
        metric=METRICS[search.objective],
        mode="max" if higher else "min",
        num_samples=max(1, search.num_trials // search.num_grid_points),
        search_alg=search_algorithm(config, most_drawn(config)),
        scheduler=scheduler(config),
        reuse_actors=False,
    )


def most_drawn(config: Config) -> int:
    """Trials that the search draws before one ends; 0 for a population, which lives as a whole."""
    return 0 if config.search.scheduler == "pbt" else most_at_once(config)


def most_at_once(config: Config) -> int:
    return config.search.max_concurrent_trials or num_concurrent(config)


HEAD_NODE_SPARE = 0.002
"""Of the head node, for each trial: Ray Train (2.60) puts an actor there for a group, which takes 0.001."""


def worker_share(config: Config) -> dict[str, float]:
    """What a trial takes that trains in its own process."""
    workers = config.workers
    assert not isinstance(workers.gpus_per_worker, str), "auto is resolved before the search starts"
    return {"CPU": workers.cpus_per_worker, "GPU": workers.gpus_per_worker}


def driver_share(config: Config) -> dict[str, float]:
    """What the driver of a trial takes of the head node; it only waits for its workers and needs no core.

    A population lives as a whole: its trials take turns, so their drivers' places are as many as run at once.
    """
    share = 0.001
    if config.search.scheduler == "pbt":
        share = 1 / most_at_once(config) - HEAD_NODE_SPARE
        share = max(0.0001, math.floor(10_000 * share) / 10_000)
    return {"node:__internal_head__": share}


def num_concurrent(config: Config) -> int:
    """Trials that the cluster holds at once; 1 where the nodes for one are yet to come."""
    return max(1, _num_held(config))


def check_room(config: Config) -> None:
    """Says that a trial waits for a node that holds its workers. Raises ConfigError where none can come."""
    if _num_held(config):
        return
    workers = config.workers
    wanted = f"workers: a trial of {workers.per_trial} worker(s) wants {workers.cpus_per_worker:g} CPUs"
    wanted += f" and {workers.gpus_per_worker:g} GPU(s)" if workers.gpus_per_worker else ""
    wanted += " on one node for each" if workers.per_trial > 1 else " on one node"
    there = f"there are {cluster.described()}"
    if cluster.is_final():
        raise ConfigError(f"{wanted}, {there}; lower workers.cpus_per_worker, gpus_per_worker or per_trial")
    log.warning("tune     %s, %s: waiting for nodes", wanted, there)


def _num_held(config: Config) -> int:
    workers = config.workers
    cpus, gpus = workers.cpus_per_worker, workers.gpus_per_worker
    assert not isinstance(gpus, str), "auto is resolved before the search starts"
    return cluster.num_workers(cpus, gpus) // workers.per_trial


def search_algorithm(config: Config, max_concurrent: int) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    from ray_jobs.stages.searchers import LimitedTrials, RandomTrials

    if config.search.algorithm == "random":
        return RandomTrials(random_state=config.seed, max_concurrent=max_concurrent)
    return LimitedTrials(OptunaSearch(seed=config.seed), max_concurrent=max_concurrent)


def scheduler(config: Config) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    search = config.search
    if search.scheduler == "asha":
        longest = most_steps(config.training, search)
        return ASHAScheduler(
            time_attr="step",
            max_t=longest,
            grace_period=min(search.grace_steps, longest),
            reduction_factor=search.reduction_factor,
        )
    if search.scheduler == "median":
        return MedianStoppingRule(time_attr="step", grace_period=search.grace_steps)
    if search.scheduler == "pbt":
        from ray_jobs.stages.population import population

        return population(config)
    return FIFOScheduler()
