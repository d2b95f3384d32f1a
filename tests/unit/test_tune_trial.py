"""What a trial passes on between its Ray Train group and Ray Tune, without either."""

import logging
import os
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.orpo.metrics import TrainingDiverged
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.stages import train_groups, train_worker, tune_trial
from ray_jobs.stages.diverged import raise_if_diverged
from ray_jobs.stages.tune_trial import Pointer, PointingCallback, pass_on, read_pointer
from ray_jobs.stages.worker_groups import train_here


def test_reports_come_with_a_pointer_to_their_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.tune

    told: list[tuple[dict[str, Any], Pointer | None]] = []
    monkeypatch.setattr(
        ray.tune, "report", lambda row, checkpoint=None: told.append((row, read_pointer(checkpoint)))
    )
    items: queue.Queue[Any] = queue.Queue()
    callback = PointingCallback(items, "ab1_00000-0f")
    callback.after_report(None, [{"step": 0}, {"step": 9}], None)
    callback.after_report(None, [{"step": 2}], SimpleNamespace(path="/s/checkpoint_1"))
    items.put(None)
    pass_on(items, {"taken_over": "ab1_00001"})
    assert told == [
        ({"step": 0, "taken_over": "ab1_00001"}, None),
        (
            {"step": 2, "taken_over": "ab1_00001", "checkpoint_path": "/s/checkpoint_1"},
            Pointer("ab1_00000-0f", "/s/checkpoint_1"),
        ),
    ]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_diverged_training_ends_its_worker_and_leaves_a_note(tmp_path: Path, rank: int, where: str) -> None:
    group = SimpleNamespace(rank=rank, size=2, name="ab1_00000", listed=lambda: None)

    def diverges(*_: Any) -> None:
        raise TrainingDiverged("step 3: loss not finite")

    storage = str(tmp_path) if where == "folder" else f"memory:/{tmp_path}/{rank}"
    job = {"training": TrainingSettings().model_dump_json(), "storage": storage, "group": group}
    train_worker.resumed(job, diverges)
    folder = f"{storage}/ab1_00000"
    if rank:
        raise_if_diverged(folder)
        return
    with pytest.raises(TrainingDiverged, match="step 3: loss not finite"):
        raise_if_diverged(folder)


@pytest.mark.parametrize(("gpus", "sees"), [(0.0, ""), (0.5, "3"), (1, "3")])
def test_a_worker_in_its_trials_process_sees_no_gpu_where_it_takes_none_and_logs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpus: float, sees: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    told: list[str] = []

    def worker(job: dict[str, Any]) -> None:
        logging.getLogger("ray_jobs.orpo.training").info("training pairs: 13 used")
        told.append(os.environ["CUDA_VISIBLE_DEVICES"])

    train_here(worker, {"workers": {"gpus_per_worker": gpus}})
    assert told == [sees]
    assert capsys.readouterr().err.endswith(" training pairs: 13 used\n")


@pytest.mark.parametrize(("gpus", "hidden"), [(0.0, {"CUDA_VISIBLE_DEVICES": ""}), (1, {})])
def test_workers_of_a_group_see_no_gpu_where_they_take_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: float, hidden: dict[str, str]
) -> None:
    monkeypatch.setattr(train_groups, "group_trainer", lambda job: lambda worker, **options: options)
    job = {
        "workers": {"per_trial": 2, "cpus_per_worker": 1, "gpus_per_worker": gpus},
        "storage": str(tmp_path),
        "max_failures": 0,
        "population": False,
    }
    options = tune_trial.trainer(job, print, "ab1_00000", PointingCallback(None, "ab1_00000"))
    assert options["run_config"].worker_runtime_env == {"env_vars": hidden}
    assert options["scaling_config"].use_gpu == bool(gpus)
