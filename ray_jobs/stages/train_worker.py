"""A worker of a trial: reads the splits, trains, reports each evaluation with its checkpoint."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.stages.base_model import refuse_other
from ray_jobs.stages.checkpoints import read_note, whole_since, why_damaged, write_note
from ray_jobs.stages.diverged import note_diverged
from ray_jobs.stages.ray_storage import ray_storage
from ray_jobs.stages.worker_groups import Group, group_of
from serving.storage.node_cache import local_copy
from serving.storage.remote import is_uri

if TYPE_CHECKING:
    from ray_jobs.orpo.settings import TrainingSettings

    Training = Callable[[dict[str, Any], TrainingSettings, "Reports", str | None], None]

log = logging.getLogger(__name__)


def train_worker(job: dict[str, Any]) -> None:
    """Runs in every worker of a trial. `job` is plain data:

    base (ModelSettings), base_sha256 (of the run's base), training (TrainingSettings, with the trial's own
    values), train and heldout (Parquet files, by path or URI), threads (of this worker), storage (folder of
    all groups, by path or URI), start_from (another trial's checkpoint from which this one starts, as Ray
    names its path, or None). Beside that the worker's group, where it is none of Ray Train's.
    """
    resumed(job, run_training)


def resumed(job: dict[str, Any], training: "Training") -> None:
    """Has `training` go on from the trial's last whole checkpoint, if it is not at its end already.

    A training that diverges, which it does in all workers alike, ends here: it leaves a note to the trial.
    """
    from ray_jobs.orpo.metrics import TrainingDiverged
    from ray_jobs.orpo.settings import TrainingSettings

    settings = TrainingSettings.model_validate_json(job["training"])
    group = group_of(job)
    with checkpoint_folder(last_checkpoint(job, group)) as folder:
        resume_from = whole(folder)
        reports = Reports(group, resume_from)
        try:
            if not reports.finished(settings.num_steps):
                training(job, settings, reports, resume_from)
        except TrainingDiverged as error:
            if group.rank == 0:
                note_diverged(group_folder(job, group), str(error))


def group_folder(job: dict[str, Any], group: Group) -> str:
    """Where the group keeps its checkpoints, by path or URI."""
    return f"{job['storage']}/{group.name}"


def last_checkpoint(job: dict[str, Any], group: Group) -> Any:
    """What the group goes on from: its own last checkpoint, or the one that it takes over; None at the start.

    Ray Train (2.60) looks from time to time what its workers have written, and does not know of a checkpoint
    that came after its last look, when they then die. Nor does it remove that one later: it stays until the
    run's folder is removed.
    """
    listed, folder = group.listed(), group_folder(job, group)
    names = [Path(listed.path).name] if listed else []
    if newer := whole_since(folder, names, alone=group.size == 1):
        return checkpoint_at(f"{ray_storage(folder)['storage_path']}/{newer}", job)
    return listed or (checkpoint_at(job["start_from"], job) if job.get("start_from") else None)


def checkpoint_at(path: str, job: dict[str, Any]) -> Any:
    """The checkpoint at a path of the file system on which Ray keeps the groups."""
    import ray.train

    return ray.train.Checkpoint(path, ray_storage(job["storage"])["storage_filesystem"])


def run_training(
    job: dict[str, Any], settings: "TrainingSettings", reports: "Reports", resume_from: str | None
) -> None:
    import torch

    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.settings import ModelSettings
    from ray_jobs.orpo.training import train
    from ray_jobs.records import pair_from_row
    from ray_jobs.tables import read_rows

    torch.set_num_threads(job["threads"])
    share = job["workers"]["gpus_per_worker"]
    if torch.cuda.is_available() and 0 < share < 1:
        torch.cuda.set_per_process_memory_fraction(share)  # its neighbours' memory is not its own
    if not is_uri(job["storage"]):
        folder = group_folder(job, group_of(job))
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", f"{folder}/tensorboard")
    base = resolve_base(ModelSettings.model_validate_json(job["base"]), default_cache_dir())
    refuse_other(base.name, base.sha256, job["base_sha256"], job["storage"])
    with tempfile.TemporaryDirectory() as output_dir:
        train(
            settings,
            model_dir=str(base.hf_dir),
            train_pairs=[pair_from_row(row) for row in read_rows(local_copy(job["train"]))],
            heldout_pairs=[pair_from_row(row) for row in read_rows(local_copy(job["heldout"]))],
            output_dir=output_dir,
            on_eval=lambda metrics, folder: reports.add(metrics.as_row(), folder),
            resume_from=resume_from,
        )


def checkpoint_folder(checkpoint: Any) -> Any:
    """The last checkpoint as a local folder for as long as training reads it; None when there is none."""
    from contextlib import nullcontext

    return nullcontext(None) if checkpoint is None else checkpoint.as_directory()


def whole(folder: str | None) -> str | None:
    """The checkpoint's folder, None when it is damaged: then training starts anew."""
    if folder is None:
        return None
    reason = why_damaged(Path(folder))
    if reason is not None:
        log.warning("not resumed from its checkpoint: %s", reason)
    return folder if reason is None else None


class Reports:
    """Passes evaluations on to the group, each checkpoint with those that led to it."""

    def __init__(self, group: Group, resume_from: str | None) -> None:
        self._group = group
        self._resume_from = resume_from
        self._rows = read_note(Path(resume_from)) if resume_from else []

    def finished(self, num_steps: int) -> bool:
        """True when the checkpoint is the last one; its evaluation is then reported once more."""
        if not self._rows or self._rows[-1]["step"] < num_steps:
            return False
        self._group.report(self._rows[-1], self._resume_from if self._group.rank == 0 else None)
        return True

    def add(self, row: dict[str, Any], folder: str | None) -> None:
        """A barrier over the workers: all report the numbers, and what they wrote of the checkpoint."""
        self._rows.append(row)
        if folder:
            write_note(Path(folder), self._group.rank, self._rows)
        self._group.report(row, folder)
