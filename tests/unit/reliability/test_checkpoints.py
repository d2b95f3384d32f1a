import json
import pickle
import shutil
from pathlib import Path

import pytest

from ray_jobs.stages.checkpoints import (
    prepare_search,
    read_note,
    repair_trial,
    whole_since,
    why_damaged,
    write_note,
)
from ray_jobs.stages.trial_table import drawn_order, evaluations

ROWS = [{"step": 5, "heldout_nll": 1.5}, {"step": 10, "heldout_nll": 1.25}]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint_10"
    (folder / "shards").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"weights")
    (folder / "shards" / "rank0.pt").write_bytes(b"optimiser")
    write_note(folder, 0, ROWS)
    return folder


def test_a_whole_checkpoint_keeps_its_evaluations(checkpoint: Path) -> None:
    assert why_damaged(checkpoint) is None
    assert read_note(checkpoint) == ROWS
    write_note(checkpoint, 1, ROWS)
    assert why_damaged(checkpoint) is None


def test_damage_is_named(checkpoint: Path) -> None:
    (checkpoint / "shards" / "rank0.pt").write_bytes(b"optimizer")
    assert str(why_damaged(checkpoint)).endswith("rank0.pt: is damaged")
    (checkpoint / "shards" / "rank0.pt").unlink()
    assert str(why_damaged(checkpoint)).endswith("rank0.pt: is missing")
    (checkpoint / "evaluations-0.json").write_text('{"files": ')
    assert "cannot be read" in str(why_damaged(checkpoint))
    assert read_note(checkpoint) == []
    (checkpoint / "evaluations-0.json").unlink()
    assert "has no evaluations-0.json" in str(why_damaged(checkpoint))


def test_the_curve_has_each_step_once_whatever_was_reported_again(checkpoint: Path) -> None:
    reported = [
        {"step": 10, "heldout_nll": 9.0},
        {"step": 15, "heldout_nll": 1.0},
        {"step": 15, "heldout_nll": 1.0},
    ]
    assert evaluations(str(checkpoint), reported) == [*ROWS, {"step": 15, "heldout_nll": 1.0}]
    assert [row["step"] for row in evaluations(None, reported)] == [10, 15]


def test_a_list_of_checkpoints_that_a_kill_cut_short_is_made_anew(tmp_path: Path, checkpoint: Path) -> None:
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    repair_trial(str(tmp_path))
    assert not snapshot.exists()
    whole = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_10", "metrics": {}}]})
    snapshot.write_text(whole)
    repair_trial(str(tmp_path))
    assert repair_trial(str(tmp_path)) == "checkpoint_10"
    assert snapshot.read_text() == whole
    for broken in (whole[:20], "", whole.replace("checkpoint_10", "checkpoint_2")):
        snapshot.write_text(broken)
        repair_trial(str(tmp_path))
        (result,) = json.loads(snapshot.read_bytes())["checkpoint_results"]
        assert (result["checkpoint_dir_name"], result["metrics"]) == ("checkpoint_10", ROWS[-1])


def test_without_a_whole_checkpoint_the_trial_starts_anew(tmp_path: Path, checkpoint: Path) -> None:
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    snapshot.write_text("{")
    (checkpoint / "adapter.safetensors").write_bytes(b"cut")
    repair_trial(str(tmp_path))
    assert not snapshot.exists()


def test_a_whole_checkpoint_that_was_not_listed_yet_is_gone_on_from(tmp_path: Path, checkpoint: Path) -> None:
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    listed = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_10", "metrics": {}}]})
    newer = tmp_path / "checkpoint_15"
    for files, notes, expected in (
        ({"adapter.safetensors": b"more"}, [0], "checkpoint_15"),
        ({"adapter.safetensors": b"more"}, [0, 1], "checkpoint_10"),  # of one worker more: not this trial's
        ({"adapter.safetensors": b"more"}, [], "checkpoint_10"),  # still being written
    ):
        snapshot.write_text(listed)
        newer.mkdir()
        for name, data in files.items():
            (newer / name).write_bytes(data)
        for rank in notes:
            write_note(newer, rank, [*ROWS, {"step": 15}])
        repair_trial(str(tmp_path))
        found = json.loads(snapshot.read_text())["checkpoint_results"]
        assert [one["checkpoint_dir_name"] for one in found] == [expected]
        shutil.rmtree(newer)
    snapshot.write_text(listed)
    newer.mkdir()
    (newer / "adapter.safetensors").write_bytes(b"more")
    write_note(newer, 0, ROWS)
    (newer / "adapter.safetensors").write_bytes(b"mo")
    repair_trial(str(tmp_path))
    assert snapshot.read_text() == listed, "a damaged one is left alone"
    write_note(checkpoint, 1, ROWS)
    write_note(newer, 0, ROWS)
    repair_trial(str(tmp_path))
    assert snapshot.read_text() == listed, "one worker of two has written its part"


def test_of_a_worker_alone_a_checkpoint_counts_before_any_is_listed(tmp_path: Path, checkpoint: Path) -> None:
    assert whole_since(str(tmp_path), []) is None
    assert whole_since(str(tmp_path), [], alone=True) == checkpoint.name
    assert whole_since(str(tmp_path), [checkpoint.name], alone=True) is None
    (checkpoint / "adapter.safetensors").write_bytes(b"wei")
    assert whole_since(str(tmp_path), [], alone=True) is None


def test_ray_reads_the_list_that_is_made_anew(tmp_path: Path, checkpoint: Path) -> None:
    manager = pytest.importorskip("ray.train.v2._internal.execution.checkpoint.checkpoint_manager")
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    snapshot.write_text("{")
    repair_trial(str(tmp_path))
    state = manager._CheckpointManagerState.parse_obj(json.loads(snapshot.read_bytes()))
    assert state.latest_checkpoint_result.checkpoint_dir_name == "checkpoint_10"


def test_only_damaged_search_states_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "experiment_state-1.json").write_text('{"trial_data": []}')
    (tmp_path / "experiment_state-2.json").write_text('{"trial_da')
    for number, data in ((1, pickle.dumps("searcher")), (3, pickle.dumps("searcher")[:-1])):
        (tmp_path / f"searcher-state-{number}.pkl").write_bytes(data)
    (tmp_path / "experiment_state-3.json").write_text("{}")
    (tmp_path / "tuner.pkl").write_bytes(b"")
    prepare_search(tmp_path)
    left = ["experiment_state-1.json", "searcher-state-1.pkl", "tuner.pkl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_search_that_has_no_state_starts_anew(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    prepare_search(experiment)
    experiment.mkdir()
    (experiment / "tuner.pkl").write_bytes(b"tuner")
    (experiment / "experiment_state-1.json").write_text("")
    prepare_search(experiment)
    assert not experiment.exists()


def test_trials_keep_the_order_in_which_they_were_drawn() -> None:
    names = [
        "/s/run_trial_b26b2_00010_10_beta=0.1_2026-11-22_22-47-31",
        "/s/run_trial_b26b2_00002_2_beta=0.2,lora_rank=8_2026-11-22_22-47-31",
        "/s/run_trial_1f00ab12_1_beta=0.3_2026-11-22_22-47-31",
        "/s/run_trial_b26b2_00000_0_2026-11-22_22-47-31",
    ]
    assert [drawn_order(name)[0] for name in names] == [10, 2, 1, 0]
    assert sorted(names, key=drawn_order) == names[::-1]
