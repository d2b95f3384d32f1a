"""Trials as plain data: their settings, their rows in the trial table, and which one is best."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.search.settings import Choice, Dimension, SearchSettings

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


def num_drawn(search: SearchSettings) -> int:
    """Trials of the search: whole passes over the points of its grid."""
    points = search.num_grid_points
    return max(1, search.num_trials // points) * points


def most_steps(training: TrainingSettings, search: SearchSettings) -> int:
    """Steps of the longest trial that may be drawn."""
    return _most("num_steps", training.num_steps, search)


def most_pairs_per_step(training: TrainingSettings, search: SearchSettings) -> int:
    """Pairs of the largest step that may be drawn."""
    return _most("pairs_per_step", training.pairs_per_step, search)


def _most(name: str, otherwise: int, search: SearchSettings) -> int:
    drawn = search.space.get(name)
    return otherwise if drawn is None else max(int(value) for value in drawn.values)


def check_trials(training: TrainingSettings, search: SearchSettings, num_workers: int) -> None:
    """Raises ValueError, naming the field, when a trial may be drawn that would be refused."""
    for name, dimension in search.space.items():
        if name.startswith("lora.") and training.lora is None:
            raise ValueError(f"search.space.{name}: there are no adapters: training.lora is null")
        for value in _drawn(dimension):
            if reason := _why_refused(training, name, value):
                raise ValueError(f"search.space.{name}: {value!r} does not fit: {reason}")
    _check_shares(training, search, num_workers)


def _drawn(dimension: Dimension) -> Sequence[Choice]:
    """The values, of a range of fractions those next to its ends: the ends themselves are never drawn."""
    ends = dimension.values
    if dimension.kind not in ("uniform", "loguniform") or not all(isinstance(end, float) for end in ends):
        return ends
    low, high = float(ends[0]), float(ends[-1])
    return math.nextafter(low, high), math.nextafter(high, low)


def _why_refused(training: TrainingSettings, name: str, value: Choice) -> str | None:
    try:
        with_overrides(training, {name: value})
    except ValidationError as error:
        reason = str(error.errors(include_url=False, include_context=False)[0]["msg"])
        return reason.removeprefix("Value error, ").replace("Input should be", "must be")
    return None


def _check_shares(training: TrainingSettings, search: SearchSettings, num_workers: int) -> None:
    """Pairs of a step are shared out evenly over a trial's workers."""
    drawn = search.space.get("pairs_per_step")
    field = "training.pairs_per_step" if drawn is None else "search.space.pairs_per_step"
    if num_workers > 1 and drawn is not None and drawn.kind in ("uniform", "loguniform"):
        raise ValueError(
            f"{field}: a range holds numbers that {num_workers} workers cannot share; use choice"
        )
    for pairs in (training.pairs_per_step,) if drawn is None else drawn.values:
        if int(pairs) % num_workers:
            raise ValueError(f"{field}: {pairs} is not a multiple of workers.per_trial, {num_workers}")


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
