"""Trials of which the beta says what becomes of them."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.stages import train_worker
from tests.chaos import memory, stub_pipeline
from tests.chaos.victims import kind_of

SOUND, KILLED, FAILING, GREEDY, BULKY, LATE, ALONE = 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7
DEATHS = {KILLED: 10, LATE: 20}
"""After reporting which step a trial's worker dies, once."""
BULK = 1_500_000
"""Bytes of each checkpoint of the bulky one."""
Add = Callable[[dict[str, Any], str | None], None]
BEGUN = "chaos/begun-{beta}"
"""A line for each time that a trial's training began."""
GROUP = "chaos/group"
"""Names the control group whose memory the greedy one fills."""


def training(job: dict[str, Any], settings: TrainingSettings, reports: Any, resume_from: str | None) -> None:
    root = Path(job["train"]).parents[1]
    begun = root / BEGUN.format(beta=settings.beta)
    begun.parent.mkdir(exist_ok=True)
    with begun.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if settings.beta == FAILING:
        raise ValueError("loss is not finite")
    if settings.beta == GREEDY:
        memory.fill(Path((root / GROUP).read_text()))
    if settings.beta in DEATHS and resume_from is None:
        reports.add = partial(add_and_die, reports.add, DEATHS[settings.beta])
    if settings.beta == ALONE and resume_from is None:
        reports.add = partial(add_and_kill_controllers, reports.add)
    if settings.beta == BULKY:
        reports.add = partial(add_with_bulk, reports.add)
    stub_pipeline.stub_training(job, settings, reports, resume_from)


def add_and_die(add: Add, step: int, row: dict[str, Any], folder: str | None) -> None:
    add(row, folder)
    if row["step"] == step:
        os.kill(os.getpid(), signal.SIGKILL)


def add_and_kill_controllers(add: Add, row: dict[str, Any], folder: str | None) -> None:
    """Of this cluster: they and this worker have the same raylet."""
    add(row, folder)
    if row["step"] == 10:
        for process in psutil.Process().parent().children():
            if kind_of(process) == "train controller":
                process.kill()


def add_with_bulk(add: Add, row: dict[str, Any], folder: str | None) -> None:
    if folder:
        Path(folder, "optimizer.bin").write_bytes(bytes(BULK))
    add(row, folder)


def worker(job: dict[str, Any]) -> None:
    train_worker.resumed(job, training)
