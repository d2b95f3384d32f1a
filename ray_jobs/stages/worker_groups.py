"""Who trains a trial: a group of Ray Train's workers, or a worker in the trial's own process.

Ray Train (2.60) starts five processes besides the worker of a group of one, each of which imports Ray for
seconds. A worker that trains alone needs none of them: Ray Tune has placed its process already, ends it, and
starts it again where it fails.
"""

import datetime
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ray_jobs.logs import configure
from ray_jobs.runs import replacing
from ray_jobs.stages.group_notes import files_in, remove
from ray_jobs.stages.ray_storage import ray_storage
from serving.storage.remote import Remote, is_uri


def trains_alone(job: dict[str, Any]) -> bool:
    """Whether a job's trials have a single worker that needs no process group.

    DeepSpeed wants one for a single worker, too. With a process group, torch takes the one GPU that is the
    worker's turn; without, all that it sees, so a worker of several GPUs gets a group as well.
    """
    from ray_jobs.orpo.settings import TrainingSettings

    workers = job["workers"]
    deepspeed = TrainingSettings.model_validate_json(job["training"]).deepspeed
    return bool(workers["per_trial"] == 1 and workers["gpus_per_worker"] <= 1 and deepspeed is None)


def gpus_seen(workers: dict[str, Any]) -> dict[str, str]:
    """What the environment says of GPUs to a worker's process: one that takes none sees none.

    Ray (2.60) hides nothing from a process that takes no GPU, and torch, transformers and DeepSpeed each use
    the first that they see. To be set before CUDA starts in the process.
    """
    return {} if workers["gpus_per_worker"] else {"CUDA_VISIBLE_DEVICES": ""}


def train_here(worker: Callable[[dict[str, Any]], None], job: dict[str, Any]) -> None:
    """Run the only worker of a trial in this process, which is the trial's own, and so is what it logs."""
    os.environ.update(gpus_seen(job["workers"]))
    configure()
    worker(job)


class Group(Protocol):
    """A worker's place among those that train with it."""

    name: str
    rank: int
    size: int

    def listed(self) -> Any:
        """The last checkpoint that Ray knows of (`ray.train.Checkpoint`); None at the start."""

    def report(self, row: dict[str, Any], folder: str | None) -> None:
        """Tell an evaluation, and keep what lies in the folder as its checkpoint. Waits for all workers."""


class TrainGroup:
    """A worker's place in a group of Ray Train, to be asked for in the worker."""

    def __init__(self) -> None:
        import ray.train

        context = ray.train.get_context()
        self.name = context.get_experiment_name()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()

    def listed(self) -> Any:
        import ray.train

        return ray.train.get_checkpoint()

    def report(self, row: dict[str, Any], folder: str | None) -> None:
        import ray.train

        checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
        ray.train.report(row, checkpoint=checkpoint)


class OwnProcess:
    """The place of a worker that trains in its trial's process, which tells Ray Tune itself."""

    rank, size = 0, 1

    def __init__(self, storage: str, name: str) -> None:
        """`storage`: the folder of all groups, by path or URI."""
        self.name = name
        self._folder = f"{storage}/{name}"

    def listed(self) -> None:
        """Nobody keeps a list: what lies in the folder is looked at."""

    def report(self, row: dict[str, Any], folder: str | None) -> None:
        """Checkpoints before this one are given up once Tune knows it."""
        import ray.tune

        if folder is None:
            ray.tune.report(row)
            return
        name = next_name(self._folder)
        keep(Path(folder), self._folder, name)
        ray.tune.report({**row, "checkpoint_path": f"{ray_storage(self._folder)['storage_path']}/{name}"})
        give_up_before(name, self._folder)


def group_of(job: dict[str, Any]) -> Group:
    """The group of the worker that is told this job."""
    own: Group | None = job.get("group")
    return own or TrainGroup()


# Checkpoints of a worker that trains alone, named as Ray Train names its own: by the time.


def next_name(group: str) -> str:
    """A name that sorts after those of the checkpoints that are there, wherever clocks have gone since."""
    newest = max(_checkpoints(group), default="")
    name = f"checkpoint_{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d_%H-%M-%S.%f}"
    return name if name > newest else f"{newest}-"


def keep(checkpoint: Path, group: str, name: str) -> None:
    """Copy a checkpoint into the group's folder, a path or a URI. In a folder it appears whole, synced to the
    disk; in a store file by file: it is used once all files of its note are there.

    Raises OSError; then nothing of it is left in a folder.
    """
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    if is_uri(group):
        for path in files:
            (Remote(group) / f"{name}/{path.relative_to(checkpoint).as_posix()}").upload(path)
        return
    partial = Path(group, f"{_UNFINISHED}{name}")
    try:
        for path in files:
            with path.open("rb") as there, replacing(partial / path.relative_to(checkpoint)) as here:
                shutil.copyfileobj(there, here, _PIECE)
        partial.rename(Path(group, name))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def give_up_before(name: str, group: str) -> None:
    """Remove older checkpoints, and what a kill has left of unfinished ones."""
    older = [each for each in _checkpoints(group) if each < name]
    if is_uri(group):
        for file in sorted(files_in(group)):
            if file.partition("/")[0] in older:
                remove(group, file)
        return
    unfinished = [path.name for path in Path(group).glob(f"{_UNFINISHED}checkpoint_*")]
    for each in [*older, *unfinished]:
        shutil.rmtree(Path(group, each), ignore_errors=True)


_UNFINISHED = "."
_PIECE = 2**20
"""Bytes that are copied at once."""


def _checkpoints(group: str) -> set[str]:
    return {file.partition("/")[0] for file in files_in(group) if file.startswith("checkpoint_")}
