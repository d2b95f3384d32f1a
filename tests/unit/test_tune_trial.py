"""What a trial passes on between its Ray Train group and Ray Tune, without either."""

import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.orpo.metrics import TrainingDiverged
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.stages import train_worker
from ray_jobs.stages.diverged import raise_if_diverged
from ray_jobs.stages.tune_trial import Pointer, PointingCallback, pass_on, read_pointer


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
