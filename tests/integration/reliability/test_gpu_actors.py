"""Judges that ask for GPUs, on a cluster that says it has one: Ray believes what it is told."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.config import EngineActors, load_config
from ray_jobs.errors import StageFailed
from ray_jobs.stages import cluster, judge
from ray_jobs.stages.engine_rows import num_actors
from tests.chaos.stub import WhichGpu, compute_rows, echo_job

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    import ray

    ray.shutdown()
    ray.init(address="local", num_cpus=2, num_gpus=1, log_to_driver=False, logging_level="ERROR")
    cluster.quiet()
    yield
    ray.shutdown()


@pytest.mark.parametrize(("gpus", "actors"), [(1.0, 1), (0.5, 2)])
def test_actors_get_the_gpu_and_are_as_many_as_share_it(
    one_gpu: None, tmp_path: Path, gpus: float, actors: int
) -> None:
    job = replace(echo_job(tmp_path / "log"), actor=WhichGpu, gpus=gpus)
    pool = EngineActors(rows_per_block=2)
    assert num_actors(job, pool) == actors
    assert num_actors(job, EngineActors(actors=7)) == actors
    rows = [{"id": f"r{number}", "text": "text"} for number in range(8)]
    results = compute_rows(job, rows, tmp_path / "unfinished", pool)
    assert [result["answer"] for result in results] == ["0"] * 8


def test_what_the_cluster_has_not_is_said(one_gpu: None, tmp_path: Path) -> None:
    job = replace(echo_job(tmp_path / "log"), gpus=2.0)
    with pytest.raises(StageFailed, match=r"echo: an engine wants 2 GPU\(s\), the cluster has 1"):
        num_actors(job, EngineActors())


@pytest.mark.parametrize(
    ("backend", "asked", "gpus"),
    [("vllm", "auto", 1.0), ("hf", "auto", 1.0), ("llamafile", "auto", 0.0), ("vllm", "0", 0.0),
     ("llamafile", "0.5", 0.5)],
)  # fmt: skip
def test_which_judges_take_one(one_gpu: None, backend: str, asked: str, gpus: float) -> None:
    changes = [f"judge.backend={backend}", f"judge.gpus={asked}", "judge.adapter=null", "judge.feedback=true"]
    changes.append("judge.model=me/judge")
    config = load_config(ROOT / "configs/smoke.yaml", changes)
    assert judge.judge_gpus(config) == gpus
