"""A trial's group of workers in Ray Train, with no more processes and imports than it needs.

Ray Train (2.60) gives each group an actor for Ray Data's datasets, of which trials have none: its start keeps
the workers waiting. A worker that trains alone needs no process group either, so the processes that drive it
need no torch.
"""

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ray_jobs.stages.worker_groups import trains_alone


class WithoutDatasets(DataParallelTrainer):
    """A trainer of workers that read their data themselves."""

    def _create_default_callbacks(self) -> list[Any]:
        from ray.train.v2._internal.callbacks import DatasetsCallback

        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


def group_trainer(job: dict[str, Any]) -> type[WithoutDatasets]:
    """The trainer for the workers of a job; with a torch process group where these share the work."""
    if trains_alone(job):
        return WithoutDatasets
    from ray_jobs.stages.torch_group import TorchGroupTrainer

    return TorchGroupTrainer
