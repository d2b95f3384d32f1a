"""Trials of which the beta says what becomes of them."""

import os
import signal
from typing import Any

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.stages import train_worker
from tests.chaos import stub_pipeline

SOUND, KILLED, FAILING = 0.1, 0.2, 0.3


def training(job: dict[str, Any], settings: TrainingSettings, reports: Any, resume_from: str | None) -> None:
    if settings.beta == FAILING:
        raise ValueError("loss is not finite")
    if settings.beta == KILLED and resume_from is None:
        add = reports.add

        def add_and_die(row: dict[str, Any], folder: str | None) -> None:
            add(row, folder)
            if row["step"] == 10:
                os.kill(os.getpid(), signal.SIGKILL)

        reports.add = add_and_die
    stub_pipeline.stub_training(job, settings, reports, resume_from)


def worker(job: dict[str, Any]) -> None:
    train_worker.resumed(job, training)
