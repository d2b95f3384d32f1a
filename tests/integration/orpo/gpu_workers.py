"""Workers of trials on a GPU: they train as trials do, and note how."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from ray_jobs.stages import train_worker
from tests.integration.orpo.search_worker import note

DEADLINE_S = 120.0
SIDE_BY_SIDE = 3
KILLED_AFTER = 4
"""The step whose checkpoint is the last that the killed worker wrote."""


def noted(job: dict[str, Any]) -> None:
    """Trains; then notes, a line of JSON, the process, its GPUs and the most of a GPU's memory it held."""
    import torch

    train_worker.train_worker(job)
    told = {
        "pid": os.getpid(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "reserved": torch.cuda.max_memory_reserved(),
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else None,
    }
    note(job, "workers", json.dumps(told))


def side_by_side(job: dict[str, Any]) -> None:
    """As `noted`, once SIDE_BY_SIDE workers are there and hold memory of the GPU."""
    import torch

    torch.zeros(2**20, device="cuda")
    folder = note(job, "started", str(os.getpid()))
    deadline = time.monotonic() + DEADLINE_S
    while len(list(folder.iterdir())) < SIDE_BY_SIDE:
        assert time.monotonic() < deadline, "the other trials do not come"
        time.sleep(0.05)
    noted(job)


def killed_once(job: dict[str, Any]) -> None:
    """As `noted`, but that the trial's first worker is killed after a checkpoint."""
    first = len(lines(note(job, "attempts", str(os.getpid())))) == 1

    class Reports(train_worker.Reports):
        def add(self, row: dict[str, Any], folder: str | None) -> None:
            super().add(row, folder)
            note(job, "steps", str(row["step"]))
            if first and row["step"] == KILLED_AFTER:
                os.kill(os.getpid(), signal.SIGKILL)

    train_worker.Reports = Reports  # type: ignore[misc]  # of this process, which is the trial's alone
    noted(job)


def lines(folder: Path) -> list[str]:
    """What all trials noted."""
    return [line for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]
