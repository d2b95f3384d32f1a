import hashlib
import json
from pathlib import Path

import pytest

from ray_jobs.stages.forgotten import forgotten_trials, take_up

ONE, OTHER = '{"beta": 0.1}', '{"beta": 0.2}'


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    """Three trials, each with what it has reached; the first two are of the same settings."""
    for name, settings in (("a_00000", ONE), ("a_00001", ONE), ("a_00002", OTHER)):
        take_up(tmp_path / "trials" / name, settings, {})
        (tmp_path / "trials" / name / "reached").write_text(name)
    return tmp_path / "trials"


def write_state(experiment: Path, number: int, *trial_ids: str) -> None:
    experiment.mkdir(exist_ok=True)
    rows = [[json.dumps({"trial_id": name}), "{}"] for name in trial_ids]
    (experiment / f"experiment_state-{number}.json").write_text(json.dumps({"trial_data": rows}))


def test_what_the_newest_state_does_not_know_is_forgotten(tmp_path: Path, trials: Path) -> None:
    one, other = (hashlib.sha256(text.encode()).hexdigest() for text in (ONE, OTHER))
    experiment = tmp_path / "experiment"
    everything = {one: ["a_00000", "a_00001"], other: ["a_00002"]}
    assert forgotten_trials(trials, experiment) == everything
    write_state(experiment, 1, "a_00000", "a_00001", "a_00002")
    write_state(experiment, 2, "a_00001")
    (trials / "a_00002" / "settings.json").write_text("{")
    assert forgotten_trials(trials, experiment) == {one: ["a_00000"]}
    assert forgotten_trials(tmp_path / "nowhere", experiment) == {}


def test_each_new_trial_takes_up_another_folder_of_its_settings(tmp_path: Path, trials: Path) -> None:
    forgotten = forgotten_trials(trials, tmp_path / "experiment")
    for name, settings in (("b_0", ONE), ("b_1", ONE), ("b_2", ONE), ("b_3", '{"beta": 0.3}')):
        take_up(trials / name, settings, forgotten)
    reached = {
        folder.name: (folder / "reached").read_text() if (folder / "reached").exists() else None
        for folder in trials.iterdir()
    }
    assert reached == {"b_0": "a_00000", "b_1": "a_00001", "b_2": None, "b_3": None, "a_00002": "a_00002"}
    assert all((folder / "settings.json").is_file() for folder in trials.iterdir())


def test_a_trial_that_has_a_folder_keeps_it(tmp_path: Path, trials: Path) -> None:
    take_up(trials / "a_00002", OTHER, forgotten_trials(trials, tmp_path / "experiment"))
    assert (trials / "a_00002" / "reached").read_text() == "a_00002"
