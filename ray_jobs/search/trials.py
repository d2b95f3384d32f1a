"""Trials as plain data: their settings, their rows in the trial table, and which one is best."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.search.settings import SearchSettings

HIGHER_IS_BETTER = {"accuracy": True, "margin": True, "nll": False, "loss": False}
METRICS = {name: f"heldout_{name}" for name in HIGHER_IS_BETTER}


@dataclass(frozen=True)
class Trial:
    """One finished, stopped or failed trial. `config` holds only what was searched."""

    trial_id: str
    status: str
    config: dict[str, Any]
    checkpoint: str | None
    steps: int
    seconds: float
    error: str | None = None
    heldout_accuracy: float | None = None
    heldout_nll: float | None = None
    heldout_loss: float | None = None
    heldout_margin: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)

    def objective(self, name: str) -> float | None:
        value: float | None = getattr(self, METRICS[name])
        return value


def with_overrides(training: TrainingSettings, overrides: Mapping[str, Any]) -> TrainingSettings:
    """The training settings with searched values put in by dotted name, validated again.

    Raises pydantic.ValidationError when a value does not fit its field.
    """
    data = training.model_dump(mode="json")
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
    return TrainingSettings.model_validate_json(json.dumps(data))


def largest_trial(training: TrainingSettings, search: SearchSettings) -> TrainingSettings:
    """The settings of the trial that takes most memory: adapters of the highest rank that may be drawn."""
    ranks = search.space.get("lora.rank")
    if ranks is None:
        return training
    return with_overrides(training, {"lora.rank": max(int(rank) for rank in ranks.values)})


def best_trial(trials: Iterable[Trial], objective: str) -> Trial | None:
    """The finished trial that is best on held-out pairs; ties go to the lower nll, then to the ID.

    Trials that failed, diverged or kept no checkpoint never win.
    """
    return next(iter(ranked_trials(trials, objective)), None)


def ranked_trials(trials: Iterable[Trial], objective: str) -> list[Trial]:
    """The trials that may become candidates, the best first; see best_trial."""
    return sorted(
        (trial for trial in trials if _eligible(trial, objective)), key=lambda trial: rank(trial, objective)
    )


def rank(trial: Trial, objective: str) -> tuple[float, float, str]:
    """Sort key: the lowest is the best."""
    value = trial.objective(objective)
    assert value is not None
    nll = trial.heldout_nll if trial.heldout_nll is not None else math.inf
    return (-value if HIGHER_IS_BETTER[objective] else value, nll, trial.trial_id)


def _eligible(trial: Trial, objective: str) -> bool:
    value = trial.objective(objective)
    return (
        trial.status != "failed"
        and trial.checkpoint is not None
        and value is not None
        and math.isfinite(value)
    )
