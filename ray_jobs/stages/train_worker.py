"""One Ray Train worker: reads the splits, trains, reports each evaluation with its checkpoint."""

import tempfile
from pathlib import Path
from typing import Any


def train_worker(job: dict[str, Any]) -> None:
    """Runs in every worker of a trial. `job` is plain data:

    base (ModelSettings), training (TrainingSettings, with the trial's own values), train and heldout
    (paths of Parquet files), threads (of this worker).
    """
    import ray.train
    import torch

    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.settings import ModelSettings
    from ray_jobs.orpo.settings import TrainingSettings
    from ray_jobs.orpo.training import train
    from ray_jobs.records import pair_from_row
    from ray_jobs.tables import read_rows

    torch.set_num_threads(job["threads"])
    base = resolve_base(ModelSettings.model_validate_json(job["base"]), default_cache_dir())
    checkpoint = ray.train.get_checkpoint()
    with checkpoint_folder(checkpoint) as resume_from, tempfile.TemporaryDirectory() as output_dir:
        train(
            TrainingSettings.model_validate_json(job["training"]),
            model_dir=str(base.hf_dir),
            train_pairs=[pair_from_row(row) for row in read_rows(Path(job["train"]))],
            heldout_pairs=[pair_from_row(row) for row in read_rows(Path(job["heldout"]))],
            output_dir=output_dir,
            on_eval=report,
            resume_from=resume_from,
        )


def checkpoint_folder(checkpoint: Any) -> Any:
    """The last checkpoint as a local folder for as long as training reads it; None when there is none."""
    from contextlib import nullcontext

    return nullcontext(None) if checkpoint is None else checkpoint.as_directory()


def report(metrics: Any, folder: str | None) -> None:
    """A barrier over the workers: all report the numbers, and what they wrote of the checkpoint."""
    import ray.train

    checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
    ray.train.report(metrics.as_row(), checkpoint=checkpoint)
