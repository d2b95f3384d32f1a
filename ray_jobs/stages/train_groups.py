"""A trial's group of workers in Ray Train, with no more processes and imports than it needs.

Ray Train (2.60) gives each group an actor for Ray Data's datasets, of which trials have none: its start keeps
the workers waiting. A worker that trains alone needs no process group either, so the processes that drive it
need no torch.
"""

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class WithoutDatasets(DataParallelTrainer):
    """A trainer of workers that read their data themselves."""

    def _create_default_callbacks(self) -> list[Any]:
        from ray.train.v2._internal.callbacks import DatasetsCallback

        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


def group_trainer(job: dict[str, Any]) -> type[WithoutDatasets]:
    """The trainer for the workers of a job; with a torch process group where these share the work.

    DeepSpeed wants one for a single worker, too. With a process group, torch takes the one GPU that is the
    worker's turn; without, all that it sees, so a worker of several GPUs gets a group as well.
    """
    from ray_jobs.orpo.settings import TrainingSettings

    workers = job["workers"]
    deepspeed = TrainingSettings.model_validate_json(job["training"]).deepspeed
    if workers["per_trial"] == 1 and workers["gpus_per_worker"] <= 1 and deepspeed is None:
        return WithoutDatasets
    from ray_jobs.stages.torch_group import TorchGroupTrainer

    return TorchGroupTrainer
