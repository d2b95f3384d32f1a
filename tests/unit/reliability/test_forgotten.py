import hashlib
import json
import uuid
from pathlib import Path

import pytest

from ray_jobs.stages.checkpoints import repair_trial, whole_since, write_note
from ray_jobs.stages.forgotten import forgotten_trials, taken_up
from ray_jobs.stages.group_notes import leave
from serving.storage.remote import Remote, is_uri

ONE, OTHER = '{"beta": 0.1}', '{"beta": 0.2}'


@pytest.fixture(params=["folder", "store"])
def search(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a search keeps what it has, with three trials; the first two are of the same settings."""
    where = str(tmp_path) if request.param == "folder" else f"memory://bucket-{uuid.uuid4().hex}"
    for name, settings, step in (("a_00000", ONE, 5), ("a_00001", ONE, 10), ("a_00002", OTHER, 5)):
        group = f"{where}/trials/{name}"
        assert taken_up(group, settings, {}, alone=True) is None
        write_checkpoint(tmp_path / "made", group, step)
    return where


def write_checkpoint(made: Path, group: str, step: int) -> None:
    """As one worker does that has no other, before Ray Train has listed it."""
    made.mkdir(exist_ok=True)
    (made / "weights").write_text(f"{step}")
    write_note(made, 0, [{"step": step}])
    for file in made.iterdir():
        leave(f"{group}/checkpoint_{step:02}", file.name, file.read_bytes())


def write_state(experiment: str, number: int, *trial_ids: str) -> None:
    rows = [[json.dumps({"trial_id": name}), "{}"] for name in trial_ids]
    leave(experiment, f"experiment_state-{number}.json", json.dumps({"trial_data": rows}).encode())


def remove(group: str, name: str) -> None:
    if is_uri(group):
        (Remote(group) / name).remove()
    else:
        Path(group, name).unlink()


def test_what_the_newest_state_does_not_know_is_forgotten(search: str) -> None:
    one, other = (hashlib.sha256(text.encode()).hexdigest() for text in (ONE, OTHER))
    trials, experiment = f"{search}/trials", f"{search}/experiment"
    everything = {one: ["a_00000", "a_00001"], other: ["a_00002"]}
    assert forgotten_trials(trials, experiment) == everything
    write_state(experiment, 1, "a_00000", "a_00001", "a_00002")
    write_state(experiment, 2, "a_00001")
    leave(f"{trials}/a_00002", "settings.json", b"{")
    assert forgotten_trials(trials, experiment) == {one: ["a_00000"]}
    assert forgotten_trials(f"{search}/nowhere", experiment) == {}


def test_a_new_trial_starts_from_the_newest_whole_checkpoint_of_its_settings(search: str) -> None:
    trials = f"{search}/trials"
    forgotten = forgotten_trials(trials, f"{search}/experiment")

    def starts_from(name: str, settings: str, *, alone: bool = True) -> str | None:
        return taken_up(f"{trials}/{name}", settings, forgotten, alone=alone)

    assert starts_from("b_0", ONE) == f"{trials}/a_00001/checkpoint_10"
    assert starts_from("b_1", '{"beta": 0.3}') is None
    assert starts_from("b_2", ONE, alone=False) is None, "which workers write is not known"
    assert starts_from("a_00002", OTHER) is None, "its own it goes on from without that"
    remove(f"{trials}/a_00001", "checkpoint_10/weights")
    assert starts_from("b_3", ONE) == f"{trials}/a_00000/checkpoint_05"
    later = forgotten_trials(trials, f"{search}/experiment")
    assert taken_up(f"{trials}/c_0", ONE, later, alone=True) == f"{trials}/a_00000/checkpoint_05"


def test_a_checkpoint_that_was_not_listed_yet_is_gone_on_from_in_a_store_too(
    search: str, tmp_path: Path
) -> None:
    group = f"{search}/trials/a_00000"
    listed = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_05", "metrics": {}}]})
    leave(group, "checkpoint_manager_snapshot.json", listed.encode())
    assert repair_trial(group) == "checkpoint_05"
    write_checkpoint(tmp_path / "made", group, 10)
    assert whole_since(group, ["checkpoint_05"]) == "checkpoint_10"
    assert repair_trial(group) == "checkpoint_10"
    assert whole_since(group, ["checkpoint_10"]) is None
    write_checkpoint(tmp_path / "made", group, 15)
    remove(group, "checkpoint_15/weights")
    assert repair_trial(group) == "checkpoint_10", "one that is still being written"
