"""Ray Train's groups of torch workers, whose places are given back also when the group fails to start.

A group that fails while its process group is set up (a worker that dies, a torch without NCCL) is forgotten
by Ray Train (2.60) with its placement group, and the next attempt waits for ever for the CPUs and GPUs of the
first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

from ray_jobs.stages.train_groups import WithoutDatasets


@contextmanager
def freed_on_failure(group: Any) -> Iterator[None]:
    """`group`: Ray Train's WorkerGroup."""
    try:
        yield
    except Exception:
        group.get_worker_group_state().shutdown()
        raise


class FreeingBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        with freed_on_failure(worker_group):
            super().on_start(worker_group, backend_config)

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        with freed_on_failure(worker_group):
            super().on_training_start(worker_group, backend_config)


@dataclass
class FreeingTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[FreeingBackend]:
        return FreeingBackend


class TorchGroupTrainer(WithoutDatasets, TorchTrainer):
    """A TorchTrainer with that backend."""

    def __init__(self, *args: Any, torch_config: TorchConfig | None = None, **options: Any) -> None:
        super().__init__(*args, torch_config=torch_config or FreeingTorchConfig(), **options)
