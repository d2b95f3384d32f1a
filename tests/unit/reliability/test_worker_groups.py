"""Checkpoints of a trial that trains in its own process: whole or not there, and the newest one kept."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.stages.checkpoints import NOTE, whole_since, write_note
from ray_jobs.stages.group_notes import files_in
from ray_jobs.stages.worker_groups import OwnProcess, give_up_before, keep, next_name, trains_alone


@pytest.fixture(params=["folder", "store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "trials") if request.param == "folder" else f"memory:/{tmp_path}/trials"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    import ray.tune

    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.tune, "report", rows.append)
    return rows


def written(folder: Path, step: int) -> Path:
    """A checkpoint as a worker makes it, with a folder in it."""
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(bytes([step]) * 10)
    (folder / "inner/state.json").write_text("{}")
    write_note(folder, 0, [{"step": step}])
    return folder


def names(group: str) -> set[str]:
    return {name.partition("/")[0] for name in files_in(group)}


def test_the_newest_checkpoint_stays_whole_and_older_ones_go(
    storage: str, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    trial = OwnProcess(storage, "ab1_00000")
    group = f"{storage}/ab1_00000"
    for step in (2, 4, 6):
        trial.report({"step": step}, str(written(tmp_path / "made", step)))
        (name,) = names(group)
        assert told[-1]["step"] == step
        assert told[-1]["checkpoint_path"].endswith(f"trials/ab1_00000/{name}")
        assert whole_since(group, [], alone=True) == name
        files = {"weights.bin", "inner/state.json", NOTE.format(rank=0)}
        assert files_in(group) == {f"{name}/{file}" for file in files}
    trial.report({"step": 7}, None)
    assert told[-1] == {"step": 7}
    assert names(group) == {name}
    assert trial.listed() is None


def test_tune_knows_a_checkpoint_before_the_one_before_it_goes(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune ends a trial within a report: what it knows of has to be there then."""
    import ray.tune

    seen: list[int] = []
    monkeypatch.setattr(ray.tune, "report", lambda _: seen.append(len(names(f"{storage}/a"))))
    trial = OwnProcess(storage, "a")
    for step in (2, 4, 6):
        trial.report({"step": step}, str(written(tmp_path / "made", step)))
    assert seen == [1, 2, 2]


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "trials/a"
    keep(written(tmp_path / "made", 2), str(group), "checkpoint_1")
    copy = shutil.copyfileobj

    def full(source: Any, target: Any, size: int) -> None:
        if source.name.endswith("weights.bin"):
            raise OSError(28, "No space left on device")
        copy(source, target, size)

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        keep(tmp_path / "made", str(group), "checkpoint_2")
    assert [path.name for path in group.iterdir()] == ["checkpoint_1"]


def test_what_a_kill_left_of_a_copy_is_never_used_and_goes(tmp_path: Path) -> None:
    group = tmp_path / "trials/a"
    keep(written(tmp_path / "made", 2), str(group), "checkpoint_1")
    shutil.copytree(group / "checkpoint_1", group / ".checkpoint_2")
    assert whole_since(str(group), [], alone=True) == "checkpoint_1"
    keep(tmp_path / "made", str(group), "checkpoint_3")
    give_up_before("checkpoint_3", str(group))
    assert [path.name for path in group.iterdir()] == ["checkpoint_3"]


def test_a_name_sorts_after_those_that_are_there_whatever_the_clock_says(
    storage: str, tmp_path: Path
) -> None:
    group, ahead = f"{storage}/a", "checkpoint_2999-12-31_23-59-59.000000"
    made = written(tmp_path / "made", 2)
    assert "checkpoint_20" < next_name(group) < ahead
    keep(made, group, ahead)
    later = next_name(group)
    keep(made, group, later)
    assert ahead < later < next_name(group)
    assert whole_since(group, [], alone=True) == later


def test_who_trains_alone() -> None:
    def alone(per_trial: int = 1, gpus: float = 0, **changes: object) -> bool:
        training = TrainingSettings.model_validate(changes).model_dump_json()
        workers = {"per_trial": per_trial, "gpus_per_worker": gpus}
        return trains_alone({"workers": workers, "training": training})

    assert alone()
    assert alone(gpus=1)
    assert alone(gpus=0.25)
    assert not alone(gpus=2), "torch takes the one GPU that is a worker's turn only in a process group"
    assert not alone(per_trial=2)
    assert not alone(gpus=1, deepspeed={"zero_optimization": {"stage": 2}})
