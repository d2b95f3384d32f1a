import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError
from ray_jobs.search.settings import SearchSettings
from ray_jobs.stages.population import population, within
from ray_jobs.stages.tune_search import driver_share
from ray_jobs.stages.tune_trial import Pointer, group_name

LOCAL = Path(__file__).parents[2] / "configs/local.yaml"
PBT = ("search.scheduler=pbt",)


def config(*changes: str) -> Config:
    return load_config(LOCAL, [*PBT, *changes])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algorithm": "optuna"}, "changes settings itself"),
        ({"num_trials": 1}, "at least 2"),
        ({"space": {"lora.rank": {"choice": [4, 8]}}}, "nothing to change"),
        ({"space": {"beta": {"choice": [0.1]}, "num_steps": {"choice": [4, 8]}}}, "same number of steps"),
    ],
)
def test_what_a_population_cannot_do_is_refused(changes: dict[str, Any], says: str) -> None:
    fields = {"scheduler": "pbt", "num_trials": 4, "space": {"beta": {"uniform": [0.1, 1]}}, **changes}
    with pytest.raises(ValidationError, match=says):
        SearchSettings.model_validate_json(json.dumps(fields))


def test_every_evaluation_needs_a_checkpoint() -> None:
    assert config("search.perturb_every_steps=16").search.perturb_every_steps == 16
    with pytest.raises(ConfigError, match="needs one at every evaluation"):
        config("training.checkpoint_every_steps=16")
    with pytest.raises(ConfigError, match="perturb_every_steps: must be a multiple"):
        config("search.perturb_every_steps=12")


def test_only_settings_that_may_change_on_the_way_are_changed_and_stay_in_their_range() -> None:
    made = population(config())
    assert set(made._hyperparam_mutations) == {"learning_rate", "beta"}
    assert made._perturbation_interval == 8
    ranges = {name: config().search.space[name] for name in ("learning_rate", "beta")}
    got = within(ranges, {"learning_rate": 1.0, "beta": 0.01, "lora.rank": 16})
    assert got == {"learning_rate": 3e-3, "beta": 0.1, "lora.rank": 16}


def test_a_trial_is_left_alone_at_its_end() -> None:
    made = population(config())
    assert made.on_trial_result(None, None, {"step": 24}) == "CONTINUE"


def test_as_many_drivers_as_trials_that_run_at_once() -> None:
    (share,) = driver_share(config("search.max_concurrent_trials=3")).values()
    assert share == 0.3313
    (share,) = driver_share(load_config(LOCAL, ["search.max_concurrent_trials=3"])).values()
    assert share == 0.001


def test_weights_taken_over_start_a_group_of_their_own() -> None:
    own, other = Pointer("ab1_00000", "/s/1"), Pointer("ab1_00001-0f", "/s/2")
    assert group_name("ab1_00000", None, {}) == "ab1_00000"
    assert group_name("ab1_00000", own, {"beta": 1}) == "ab1_00000"
    first = group_name("ab1_00000", other, {"beta": 1})
    assert first.startswith("ab1_00000-")
    assert first == group_name("ab1_00000", other, {"beta": 1})
    assert first != group_name("ab1_00000", other, {"beta": 2})
    again = Pointer(first, "/s/3")
    assert again.of_trial("ab1_00000")
    assert group_name("ab1_00000", again, {"beta": 1}) == first
