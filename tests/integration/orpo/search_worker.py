"""Workers of trials that really train, a model of a few thousand weights."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ray_jobs.export.settings import ModelSettings
from ray_jobs.orpo.metrics import Metrics
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.training import train
from ray_jobs.stages import train_worker
from ray_jobs.stages.worker_groups import group_of
from tests.unit.orpo.tiny import text_pairs

DEADLINE_S = 120.0


def alone(job: dict[str, Any]) -> None:
    train_worker.resumed(job, training)


def in_step(job: dict[str, Any]) -> None:
    """After each evaluation waits for the other of two trials to come as far."""
    train_worker.resumed(job, in_step_training)


def training(
    job: dict[str, Any],
    settings: TrainingSettings,
    reports: Any,
    resume_from: str | None,
    after: Callable[[int], None] = lambda _: None,
) -> None:
    torch.set_num_threads(1)
    note(job, "pids", str(os.getpid()))
    note(job, "gpus", repr(os.environ.get("CUDA_VISIBLE_DEVICES")))

    def on_eval(metrics: Metrics, folder: str | None) -> None:
        reports.add(metrics.as_row(), folder)
        after(metrics.step)

    with tempfile.TemporaryDirectory() as output_dir:
        train(
            settings,
            model_dir=ModelSettings.model_validate_json(job["base"]).base,
            train_pairs=text_pairs(13),
            heldout_pairs=text_pairs(7, seed=1),
            output_dir=output_dir,
            on_eval=on_eval,
            resume_from=resume_from,
        )


def in_step_training(
    job: dict[str, Any], settings: TrainingSettings, reports: Any, resume_from: str | None
) -> None:
    def wait_for_the_other(step: int) -> None:
        folder = note(job, "steps", str(step))
        deadline = time.monotonic() + DEADLINE_S
        while sum(step <= max(map(int, file.read_text().split())) for file in folder.iterdir()) < 2:
            assert time.monotonic() < deadline, "the other trial does not come"
            time.sleep(0.05)

    training(job, settings, reports, resume_from, wait_for_the_other)


def note(job: dict[str, Any], name: str, line: str) -> Path:
    """Adds a line to the trial's file in a folder of the run; returns the folder."""
    folder = Path(job["train"]).parents[1] / name
    folder.mkdir(exist_ok=True)
    trial = group_of(job).name.partition("-")[0]
    with (folder / trial).open("a") as file:
        file.write(f"{line}\n")
    return folder
