"""How a trial's group of workers starts in Ray Train, and what is left when it fails to."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.stages import cluster
from ray_jobs.stages.train_groups import group_trainer
from ray_jobs.stages.worker_groups import gpus_seen
from tests.integration.orpo.group_workers import alone, one_of_two

DEADLINE_S = 30


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    import ray

    ray.shutdown()
    cluster.connect(cpus_here=2)
    yield
    ray.shutdown()


def trainer_of(worker: Any, folder: Path, *, num_workers: int, **changes: object) -> Any:
    from ray.train import RunConfig, ScalingConfig

    job: dict[str, Any] = {
        "workers": {"per_trial": num_workers, "cpus_per_worker": 1, "gpus_per_worker": 0},
        "training": TrainingSettings.model_validate(changes).model_dump_json(),
        "folder": str(folder),
    }
    return group_trainer(job)(
        worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            storage_path=str(folder),
            name="group",
            worker_runtime_env={"env_vars": gpus_seen(job["workers"])},
        ),
    )


@pytest.mark.long
@pytest.mark.usefixtures("two_cpus")
def test_a_worker_that_trains_alone_has_no_process_group_and_no_processes_that_it_does_not_need(
    tmp_path: Path,
) -> None:
    from ray.util.state import list_actors

    trainer_of(alone, tmp_path, num_workers=1).fit()
    assert (tmp_path / "torch").read_text() == "False"
    assert (tmp_path / "grouped").read_text() == "False"
    started = {actor.class_name for actor in list_actors()}
    assert "RayTrainWorker" in started
    assert not started & {"DatasetManager", "PreemptionWatcher"}


@pytest.mark.usefixtures("two_cpus")
def test_workers_that_share_a_training_are_a_process_group(tmp_path: Path) -> None:
    trainer_of(one_of_two, tmp_path, num_workers=2).fit()
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in (0, 1)] == ["3.0", "3.0"]
    assert [(tmp_path / f"gpus-{rank}").read_text() for rank in (0, 1)] == ["''", "''"], "they take none"


def test_deepspeed_and_several_gpus_want_a_process_group() -> None:
    from ray_jobs.stages.torch_group import TorchGroupTrainer

    def kind(gpus: float, **changes: object) -> type:
        training = TrainingSettings.model_validate(changes).model_dump_json()
        return group_trainer({"workers": {"per_trial": 1, "gpus_per_worker": gpus}, "training": training})

    assert not issubclass(kind(1), TorchGroupTrainer)
    assert not issubclass(kind(0.5), TorchGroupTrainer)
    assert issubclass(kind(2), TorchGroupTrainer)
    assert issubclass(kind(1, deepspeed={"zero_optimization": {"stage": 2}}), TorchGroupTrainer)


@pytest.mark.usefixtures("two_cpus")
def test_a_group_whose_process_group_cannot_be_set_up_gives_its_cpus_back(tmp_path: Path) -> None:
    import ray
    import torch.distributed
    from ray.train import RunConfig, ScalingConfig

    from ray_jobs.stages.torch_group import FreeingTorchConfig, TorchGroupTrainer

    if torch.distributed.is_nccl_available():
        pytest.skip("this torch has NCCL")
    trainer = TorchGroupTrainer(
        print,
        torch_config=FreeingTorchConfig(backend="nccl"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(tmp_path), name="group"),
    )
    with pytest.raises(ray.train.ControllerError, match="NCCL"):
        trainer.fit()
    end = time.monotonic() + DEADLINE_S
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < end, ray.util.placement_group_table()
        time.sleep(0.2)
