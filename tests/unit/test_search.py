import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from ray_jobs.config import load_config
from ray_jobs.errors import ConfigError
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.search.settings import SearchSettings
from ray_jobs.search.trials import Trial, best_trial, check_trials, most_steps, with_overrides
from ray_jobs.stages.tune_search import scheduler

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


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


def test_optuna_needs_something_to_draw() -> None:
    with pytest.raises(ValidationError, match="space: is empty: optuna has nothing to draw"):
        search(algorithm="optuna")


@pytest.mark.parametrize(
    ("training", "space", "workers", "says"),
    [
        (
            {},
            {"lora.dropout": {"uniform": [0, 1.5]}},
            1,
            "lora.dropout: 1.5 does not fit: must be less than 1",
        ),
        (
            {},
            {"pairs_per_step": {"uniform": [0, 8]}},
            1,
            "pairs_per_step: 0 does not fit: must be greater than or equal to 1",
        ),
        (
            {},
            {"lr_schedule": {"choice": ["linear", "cosin"]}},
            1,
            "lr_schedule: 'cosin' does not fit: must be",
        ),
        (
            {"lora": {"dora": True}},
            {"lora.dropout": {"grid": [0, 0.1]}},
            1,
            "lora.dropout: 0.1 does not fit: lora.dora: is only supported",
        ),
        ({"lora": None}, {"lora.rank": {"choice": [4]}}, 1, "lora.rank: there are no adapters"),
        ({}, {"pairs_per_step": {"choice": [4, 5]}}, 2, "pairs_per_step: 5 is not a multiple of workers"),
        ({}, {"pairs_per_step": {"uniform": [4, 8]}}, 2, "pairs_per_step: a range holds numbers that 2"),
        (
            {"pairs_per_step": 3},
            {},
            2,
            "training.pairs_per_step: 3 is not a multiple of workers.per_trial, 2",
        ),
    ],
)
def test_trials_that_would_be_refused_are_told_before_any_starts(
    training: dict[str, object], space: dict[str, object], workers: int, says: str
) -> None:
    settings = TrainingSettings.model_validate_json(json.dumps(training))
    with pytest.raises(ValueError, match=re.escape(says)):
        check_trials(settings, search(space=space), workers)


def test_the_ends_of_a_range_of_fractions_are_never_drawn_and_may_not_fit() -> None:
    """A dropout of 1 is refused; a range of whole numbers, or a list, does draw its ends."""
    space = {
        "lora.rank": {"loguniform": [4, 64]},
        "pairs_per_step": {"choice": [4, 8]},
        "lr_schedule": {"grid": ["linear", "cosine"]},
        "warmup_share": {"uniform": [0, 1]},
    }
    settings = TrainingSettings(pairs_per_step=3)
    check_trials(settings, search(space=space | {"lora.dropout": {"uniform": [0.0, 1.0]}}), 2)
    for drawn in ({"grid": [0.0, 1.0]}, {"uniform": [0, 1]}):
        with pytest.raises(ValueError, match=r"lora\.dropout: 1(\.0)? does not fit: must be less than 1"):
            check_trials(settings, search(space=space | {"lora.dropout": drawn}), 2)


def test_the_longest_trial_is_the_longest_of_the_space() -> None:
    training = TrainingSettings(num_steps=100)
    assert most_steps(training, search()) == 100
    assert most_steps(training, search(space={"num_steps": {"choice": [50, 400]}})) == 400
    assert most_steps(training, search(space={"num_steps": {"uniform": [10, 60]}})) == 60


def test_a_config_names_the_trial_that_would_be_refused() -> None:
    with pytest.raises(ConfigError, match=r"smoke\.yaml: search\.space\.lora\.rank: 0 does not fit: must be"):
        load_config(SMOKE, ["search.space={lora.rank: {choice: [4, 0]}}"])
    with pytest.raises(ConfigError, match=r"training\.pairs_per_step: 3 is not a multiple of workers"):
        load_config(SMOKE, ["training.pairs_per_step=3", "workers.per_trial=2", "search.space={}"])


def test_asha_lets_the_longest_trial_come_to_its_end() -> None:
    changes = ["search.scheduler=asha", "search.grace_steps=200"]
    assert scheduler(load_config(SMOKE, changes))._max_t == load_config(SMOKE).training.num_steps
    longer = load_config(SMOKE, [*changes, "search.space={num_steps: {choice: [5, 400]}}"])
    assert scheduler(longer)._max_t == 400


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
