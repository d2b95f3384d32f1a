"""How many trials and engines a cluster holds: by its nodes, one by one."""

from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError
from ray_jobs.stages import cluster, tune_search
from ray_jobs.stages.cluster import NodeKind

ROOT = Path(__file__).parents[2]


def config(*changes: str) -> Config:
    return load_config(ROOT / "configs/llama-3.2-1b.yaml", changes)


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "held"),
    [
        (NodeKind(1, 16, 1), 8, 1, 1),
        (NodeKind(1, 16, 4), 8, 1, 2),  # two GPUs have no CPUs left for a worker
        (NodeKind(1, 16, 4), 4, 0.25, 4),
        (NodeKind(1, 64, 2), 4, 0.3333, 6),  # a fraction lies on one GPU
        (NodeKind(1, 64, 3), 4, 2, 1),
        (NodeKind(1, 4, 0), 8, 0, 0),
        (NodeKind(1, 4, 1), 8, 1, 0),
        (NodeKind(1, 3, 0), 0.1, 0, 30),
    ],
)
def test_a_worker_lies_on_one_node(node: NodeKind, cpus: float, gpus: float, held: int) -> None:
    assert node.holds(cpus, gpus) == held


def there(monkeypatch: pytest.MonkeyPatch, now: list[NodeKind], to_come: list[NodeKind]) -> None:
    monkeypatch.setattr(cluster, "nodes_there", lambda: now)
    monkeypatch.setattr(cluster, "nodes_to_come", lambda: to_come)


def test_trials_are_counted_by_what_each_node_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, [NodeKind(1, 16, 1), NodeKind(1, 12, 2)], [NodeKind(8, 16, 1), NodeKind(4, 16, 0, 16)])
    assert tune_search.num_concurrent(config()) == 8
    assert tune_search.num_concurrent(config("workers.per_trial=4")) == 2
    there(monkeypatch, [NodeKind(1, 16, 1), NodeKind(1, 12, 2)], [])
    assert tune_search.num_concurrent(config()) == 2


def test_a_trial_that_no_node_holds_is_refused_where_none_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for ever, and Tune's word of it is not shown."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    there(monkeypatch, [NodeKind(1, 4, 1)], [])
    wanted = (
        r"wants 8 CPUs and 1 GPU\(s\) on one node, there are 1 node\(s\) of 4 CPUs and 1 GPUs; lower workers"
    )
    with pytest.raises(ConfigError, match=wanted):
        tune_search.check_room(config("search.max_concurrent_trials=2"))


def test_where_nodes_may_come_it_waits_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    there(monkeypatch, [NodeKind(2, 4, 0)], [])
    assert tune_search.num_concurrent(config()) == 1
    tune_search.check_room(config())
    assert "2 node(s) of 4 CPUs and 0 GPUs: waiting for nodes" in caplog.text
    there(monkeypatch, [NodeKind(2, 4, 0)], [NodeKind(3, 4, 0)])
    with pytest.raises(ConfigError, match=r"there are 3 node\(s\) of 4 CPUs"):
        tune_search.check_room(config())


def test_ray_is_told_of_the_cores_that_engines_can_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of hyper-threads, nor of more than a container grants: engines would wait for cores."""
    from serving.engine import topology

    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(topology, "_siblings", lambda cpu: [cpu % 4, cpu % 4 + 4])
    monkeypatch.setattr(topology, "cgroup_folders", lambda _: [tmp_path])
    assert cluster.usable_cpus() == 4
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert cluster.usable_cpus() == 2


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_a_search_that_is_taken_up_starts_as_many_trials_as_the_config_says_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    from ray_jobs.stages import searchers

    monkeypatch.setattr(searchers, "_wished", None)
    search = tune_search.search_algorithm(config(f"search.algorithm={algorithm}"), 4)
    searchers.run_at_once(1)
    again = tune_search.search_algorithm(config(f"search.algorithm={algorithm}"), 4)
    again.set_state(search.get_state())
    assert (search.max_concurrent, again.max_concurrent) == (4, 1)
