"""A group of workers that fails to start gives its places back."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DEADLINE_S = 30


@pytest.fixture(scope="module")
def one_cpu() -> Iterator[None]:
    import ray

    ray.shutdown()
    ray.init(address="local", num_cpus=1, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("one_cpu")
def test_a_group_whose_process_group_cannot_be_set_up_gives_its_cpu_back(tmp_path: Path) -> None:
    import ray
    import torch.distributed
    from ray.train import RunConfig, ScalingConfig

    from ray_jobs.stages.torch_group import FreeingTorchConfig, GroupTrainer

    if torch.distributed.is_nccl_available():
        pytest.skip("this torch has NCCL")
    trainer = GroupTrainer(
        print,
        torch_config=FreeingTorchConfig(backend="nccl"),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(tmp_path), name="group"),
    )
    with pytest.raises(ray.train.ControllerError, match="NCCL"):
        trainer.fit()
    end = time.monotonic() + DEADLINE_S
    while ray.available_resources().get("CPU") != 1:
        assert time.monotonic() < end, ray.util.placement_group_table()
        time.sleep(0.2)
