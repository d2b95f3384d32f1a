import json

import pytest
from pydantic import ValidationError

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.search.settings import SearchSettings
from ray_jobs.search.trials import Trial, best_trial, with_overrides


def search(**fields: object) -> SearchSettings:
    return SearchSettings.model_validate_json(json.dumps(fields))


def trial(name: str, **fields: object) -> Trial:
    values = {"status": "done", "checkpoint": "c", "heldout_accuracy": 0.5, "heldout_nll": 1.0, **fields}
    return Trial(trial_id=name, config={}, steps=1, seconds=1.0, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"learning_rat": {"choice": [1e-4]}}, "learning_rat: cannot be searched"),
        ({"learning_rate": {}}, "exactly one of uniform"),
        ({"learning_rate": {"choice": [1], "grid": [1]}}, "exactly one of uniform"),
        ({"learning_rate": {"uniform": [2, 1]}}, "lower bound"),
        ({"learning_rate": {"loguniform": [0, 1]}}, "bounds above 0"),
        ({"lora.rank": {"uniform": [1.5, 2]}}, "1.5 is not a whole number"),
        ({"lora.rank": {"choice": ["many"]}}, "'many' is not a whole number"),
        ({"lr_schedule": {"uniform": [1, 2]}}, "is a word"),
        ({"beta": {"choice": []}}, "at least 1 item"),
    ],
)
def test_a_wrong_space_is_refused_by_name(space: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        search(space=space)


def test_optuna_draws_no_grid() -> None:
    with pytest.raises(ValidationError, match="optuna draws no grid"):
        search(space={"beta": {"grid": [0.1, 0.2]}}, algorithm="optuna")


def test_grid_points_multiply() -> None:
    space = {
        "beta": {"grid": [0.1, 0.2]},
        "lora.rank": {"grid": [4, 8, 16]},
        "learning_rate": {"choice": [1e-4]},
    }
    assert search(space=space).num_grid_points == 6


def test_searched_values_land_in_their_dotted_field() -> None:
    settings = with_overrides(TrainingSettings(), {"learning_rate": 0.5, "lora.rank": 4})
    assert (settings.learning_rate, settings.lora and settings.lora.rank) == (0.5, 4)
    assert settings.beta == TrainingSettings().beta
    with pytest.raises(ValidationError):
        with_overrides(TrainingSettings(), {"lora.rank": 0})


def test_the_best_trial_is_best_at_the_objective_and_ties_go_to_the_lower_nll() -> None:
    trials = [
        trial("a", heldout_accuracy=0.9, heldout_nll=1.0),
        trial("b", heldout_accuracy=0.9, heldout_nll=0.8),
        trial("c", heldout_accuracy=0.7, heldout_nll=0.1),
    ]
    best = best_trial(trials, "accuracy")
    assert best is not None
    assert best.trial_id == "b"
    lowest = best_trial(trials, "nll")
    assert lowest is not None
    assert lowest.trial_id == "c"


@pytest.mark.parametrize(
    "fault",
    [
        {"status": "failed"},
        {"checkpoint": None},
        {"heldout_accuracy": float("nan")},
        {"heldout_accuracy": None},
    ],
)
def test_a_failed_diverged_or_lost_trial_never_wins(fault: dict[str, object]) -> None:
    sound = trial("sound", heldout_accuracy=0.1)
    best = best_trial([trial("bad", **{"heldout_accuracy": 1.0, **fault}), sound], "accuracy")
    assert best is sound
    assert best_trial([trial("bad", **fault)], "accuracy") is None
