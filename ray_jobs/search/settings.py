"""The search over trial settings, as a config states it."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_jobs.settings import Section

Number = int | float
Choice = bool | int | float | str

SEARCHABLE = {
    "learning_rate": float,
    "beta": float,
    "lora.rank": int,
    "lora.alpha_over_rank": float,
    "lora.dropout": float,
    "pairs_per_step": int,
    "num_steps": int,
    "warmup_share": float,
    "weight_decay": float,
    "max_grad_norm": float,
    "lr_schedule": str,
}
"""The training fields that a search may vary, by their dotted name, with their type."""


PERTURBABLE = frozenset({"learning_rate", "beta", "weight_decay", "max_grad_norm"})
"""Those that can change while a training goes on; a population changes these only."""


class Dimension(Section):
    """One searched setting: exactly one of the four kinds."""

    uniform: tuple[Number, Number] | None = None
    """Lowest and highest value, evenly likely; whole numbers for a field that counts."""
    loguniform: tuple[Number, Number] | None = None
    """Lowest and highest value, evenly likely on a log scale; both above 0."""
    choice: Annotated[tuple[Choice, ...], Field(min_length=1)] | None = None
    """Values, each equally likely."""
    grid: Annotated[tuple[Choice, ...], Field(min_length=1)] | None = None
    """Values that are all tried, crossed with every other grid."""

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> Self:
        kinds = [
            kind for kind in ("uniform", "loguniform", "choice", "grid") if getattr(self, kind) is not None
        ]
        if len(kinds) != 1:
            raise ValueError("give exactly one of uniform, loguniform, choice, grid")
        bounds = self.uniform or self.loguniform
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError("the lower bound must be below the upper one")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs bounds above 0")
        return self

    @property
    def kind(self) -> Literal["uniform", "loguniform", "choice", "grid"]:
        if self.uniform:
            return "uniform"
        if self.loguniform:
            return "loguniform"
        return "choice" if self.choice else "grid"

    @property
    def values(self) -> tuple[Choice, ...]:
        """The bounds of a range, or the values of a choice or grid."""
        values = self.uniform or self.loguniform or self.choice or self.grid
        assert values is not None
        return values


class SearchSettings(Section):
    """How trials are drawn, stopped and compared."""

    space: dict[str, Dimension] = {}
    """Training field (dotted, such as `learning_rate` or `lora.rank`) -> what to try."""
    num_trials: Annotated[int, Field(ge=1, le=100_000)] = 4
    """Trials in all; with a grid, rounded to whole passes over its points (at least one)."""
    algorithm: Literal["random", "optuna"] = "random"
    """`optuna` is its TPE sampler; `random` also serves grids."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "asha"
    """Early stopping on the held-out objective, by training step; `pbt` stops none: a population, whose worst
    trials take over the weights and settings of the best, changed a little."""
    grace_steps: Annotated[int, Field(ge=1)] = 1
    """Steps before a trial may be stopped early."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """ASHA: one trial in this many goes on at each rung."""
    perturb_every_steps: Annotated[int, Field(ge=1)] | None = None
    """PBT: steps after which the worst quarter of the trials take over what the best quarter has; null: at
    every evaluation."""
    objective: Literal["accuracy", "nll", "loss", "margin"] = "accuracy"
    """What the best trial is best at, on held-out pairs. Ties go to the lower nll, which, unlike the
    loss, can be compared between trials of different beta."""
    max_concurrent_trials: Annotated[int, Field(ge=0)] = 0
    """0: as many as the cluster's CPUs or GPUs hold."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """Times that a trial is resumed from its last checkpoint after a lost worker."""

    @model_validator(mode="after")
    def _space_is_searchable(self) -> Self:
        for name, dimension in self.space.items():
            _check_dimension(name, dimension)
        if self.algorithm == "optuna" and any(dim.kind == "grid" for dim in self.space.values()):
            raise ValueError("space: optuna draws no grid; use choice, or algorithm: random")
        if self.algorithm == "optuna" and not self.space:
            raise ValueError("space: is empty: optuna has nothing to draw; use algorithm: random")
        if self.scheduler == "pbt":
            _check_population(self)
        return self

    @property
    def num_grid_points(self) -> int:
        return math.prod(len(dim.values) for dim in self.space.values() if dim.kind == "grid")


def _check_population(search: SearchSettings) -> None:
    if search.algorithm != "random":
        raise ValueError("algorithm: scheduler pbt changes settings itself; use random")
    if search.num_trials < 2:
        raise ValueError("num_trials: scheduler pbt needs at least 2")
    if not PERTURBABLE & set(search.space):
        names = ", ".join(sorted(PERTURBABLE))
        raise ValueError(f"space: scheduler pbt has nothing to change; it can change {names}")
    if "num_steps" in search.space:
        raise ValueError("space.num_steps: all trials of scheduler pbt take the same number of steps")


def _check_dimension(name: str, dimension: Dimension) -> None:
    kind = SEARCHABLE.get(name)
    if kind is None:
        raise ValueError(f"space.{name}: cannot be searched; one of {', '.join(sorted(SEARCHABLE))} can")
    if kind is str and dimension.kind in ("uniform", "loguniform"):
        raise ValueError(f"space.{name}: is a word; use choice or grid")
    for value in dimension.values:
        fits = isinstance(value, str) if kind is str else isinstance(value, int | float)
        whole = kind is not int or isinstance(value, int)
        if not fits or not whole or isinstance(value, bool):
            raise ValueError(
                f"space.{name}: {value!r} is not {'a whole number' if kind is int else kind.__name__}"
            )
