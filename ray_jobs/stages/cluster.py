"""Joining the Ray cluster that is there, or starting one on this machine."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_jobs.errors import ConfigError
from ray_jobs.yaml_files import read_yaml
from serving.engine.topology import usable_cores
from serving.storage.remote import local_path

log = logging.getLogger(__name__)

ENGINE_CORES = "engine_cores"
"""Ray resource that a cluster gives to the nodes which it keeps for engines: their number of cores."""
LAUNCHERS_FILE = "~/ray_bootstrap_config.yaml"
CLUSTER_FILE = "ORPO_CLUSTER_FILE"
"""Environment variable that names another file of the autoscaler's limits."""
BEFORE_IMPORT = {
    # A trial takes several small processes, which is what this warning is about.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started",
    # A thread that still asks for something while the driver ends starts no cluster for it.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Environment that is read when Ray is imported."""
BEFORE_START = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_niceness": "0",  # as for the endpoint: see serving.cluster_env
}
"""Environment that is read when Ray starts."""
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Environment variable of a process that each trial gets, which waits for its node to be taken away."""


def connect(cpus_here: int | None = None) -> None:
    """Joins the cluster of RAY_ADDRESS (a submitted job has it set); else starts one here.

    `cpus_here`: how many the one that is started here believes in; as many as this process may use if None.

    RAY_ADDRESS=auto joins the one that `ray start` began on this machine. Without it none is looked for:
    the file that names the last such cluster outlives it, and Ray then waits minutes for a head that is gone.

    The dashboard stays on: without its State API, Ray Tune cannot free the placement group of a trial
    that was stopped early, and the next trial waits for ever (ray 2.60). Token authentication is left to
    ray.init, which turns it on for the clusters that it starts and writes the token.
    """
    for name, value in BEFORE_IMPORT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    for name, value in BEFORE_START.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        os.environ.setdefault(PREEMPTION_WATCHER, "0")
        ray.init(
            address="local",
            num_cpus=cpus_here or usable_cpus(),
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
    """Physical cores that this process may use, as many as a container grants; engines own whole ones."""
    cores = usable_cores()
    return len(cores) if cores else os.cpu_count() or 1


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one kind: how many there are, or may be, and what each has."""

    count: int
    cpus: float
    gpus: float
    engine_cores: float = 0

    def holds(self, cpus: float, gpus: float) -> int:
        """Workers of so many CPUs and GPUs on one of them; a fraction lies on one GPU."""
        of_gpus = (
            [int(self.gpus) * int(1 / gpus + 1e-6) if gpus < 1 else int(self.gpus / gpus)] if gpus else []
        )
        of_cpus = [int(self.cpus / cpus + 1e-6)] if cpus else []
        return min([*of_gpus, *of_cpus], default=0)


def num_cpus() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def engine_cpus() -> int:
    """CPUs that engines can have, on nodes yet to come too; nodes with GPUs are for trials."""
    return max(cpus_for_engines(nodes_there()), cpus_for_engines(nodes_to_come()))


def trial_capacity(resource: str) -> float:
    """CPUs or GPUs that trials can have, on nodes yet to come too."""
    field = {"CPU": "cpus", "GPU": "gpus"}[resource]
    return max(
        sum(kind.count * float(getattr(kind, field)) for kind in kinds)
        for kinds in (nodes_there(), nodes_to_come())
    )


def num_workers(cpus: float, gpus: float) -> int:
    """Workers of trials that the nodes hold, those yet to come too; each lies on one node."""
    return max(
        sum(kind.count * kind.holds(cpus, gpus) for kind in kinds)
        for kinds in (nodes_there(), nodes_to_come())
    )


def is_final() -> bool:
    """Whether no other nodes can come: Ray was started here, or the autoscaler's limits are known."""
    return not os.environ.get("RAY_ADDRESS") or bool(nodes_to_come())


def described() -> str:
    """The nodes that are there or may come, for a message."""
    counts: Counter[tuple[float, float]] = Counter()
    for kind in nodes_to_come() or nodes_there():
        counts[kind.cpus, kind.gpus] += kind.count
    return ", ".join(
        f"{count} node(s) of {cpus:g} CPUs and {gpus:g} GPUs" for (cpus, gpus), count in counts.items()
    )


def engine_resources(cores: int) -> dict[str, float]:
    """What an engine asks for besides its CPUs: a node that is kept for engines, if the cluster has such.

    Otherwise engines settle on the nodes with GPUs that trials have just left, and these are not released.
    """
    kept = any(kind.engine_cores for kind in (*nodes_there(), *nodes_to_come()))
    return {ENGINE_CORES: cores} if kept else {}


def cpus_for_engines(kinds: Sequence[NodeKind]) -> int:
    """CPUs of the nodes kept for engines; else of those without a GPU; of all nodes where each has one."""
    if kept := sum(kind.count * kind.engine_cores for kind in kinds):
        return int(kept)
    without = [kind for kind in kinds if kind.gpus == 0 and kind.cpus > 0]
    return int(sum(kind.count * kind.cpus for kind in without or kinds))


def nodes_there() -> list[NodeKind]:
    import ray

    return [kind_of(1, node["Resources"]) for node in ray.nodes() if node["Alive"]]


def nodes_to_come() -> list[NodeKind]:
    """What the autoscaler may start at most; nothing where there is none, or no limit is known.

    Ray (2.60) tells a driver nothing of it, so the file is read that the launcher leaves on the head, where
    jobs run, or the one that $ORPO_CLUSTER_FILE names. Raises ConfigError for one that is no cluster's.
    """
    named = os.environ.get(CLUSTER_FILE)
    path = local_path(named or LAUNCHERS_FILE)
    if not os.environ.get("RAY_ADDRESS") or not (named or path.is_file()):
        return []
    config = read_yaml(path)
    try:
        most, kinds = config["max_workers"], config["available_node_types"].values()
        return [kind_of(min(most, kind.get("max_workers", most)), kind["resources"]) for kind in kinds]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is no configuration of a Ray cluster: {error!r}") from error


def kind_of(count: int, resources: Mapping[str, float]) -> NodeKind:
    return NodeKind(count, *(resources.get(name, 0) for name in ("CPU", "GPU", ENGINE_CORES)))
