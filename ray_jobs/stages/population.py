"""Population-based training (Jaderberg et al. 2017) in Ray Tune's terms.

At each interval a trial among the worst quarter takes over the weights of one among the best, and goes on
with its settings changed: times 0.8 or 1.2, a neighbour in a list, or drawn anew.
"""

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from ray_jobs.config import Config
from ray_jobs.search.settings import PERTURBABLE, Dimension


class Population(PopulationBasedTraining):
    """Ray Tune's, which leaves a trial alone at its end: weights taken over then are trained no further."""

    def __init__(self, num_steps: int, **options: Any) -> None:
        super().__init__(**options)
        self._num_steps = num_steps

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["step"] >= self._num_steps:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


def population(config: Config) -> Population:
    """The config's population; seeds what it draws from."""
    from ray_jobs.stages.tune_search import domain

    search = config.search
    random.seed(config.seed)
    np.random.seed(config.seed)
    changed = {name: dimension for name, dimension in search.space.items() if name in PERTURBABLE}
    listed: dict[str, Any] = {
        name: list(one.values) for name, one in changed.items() if one.kind in ("choice", "grid")
    }
    ranges = {name: one for name, one in changed.items() if name not in listed}
    return Population(
        config.training.num_steps,
        time_attr="step",
        perturbation_interval=search.perturb_every_steps or config.training.eval_every_steps,
        hyperparam_mutations=listed | {name: domain(name, one) for name, one in ranges.items()},
        custom_explore_fn=partial(within, ranges),
    )


def within(ranges: Mapping[str, Dimension], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with those that a factor took out of their range put back to its end."""
    ends = {name: one.uniform or one.loguniform for name, one in ranges.items()}
    return settings | {
        name: min(max(settings[name], bounds[0]), bounds[1]) for name, bounds in ends.items() if bounds
    }
