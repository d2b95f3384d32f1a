"""Pictures of the search and of the time that the run took."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_jobs.verdict.plots_style import Palette, clean, size
from ray_jobs.verdict.scored import ScoredRows

MAX_TRIALS = 200
MEASURES = {
    "heldout_accuracy": ("held-out accuracy", "%", 100.0),
    "heldout_nll": ("held-out loss per token", "", 1.0),
    "heldout_loss": ("held-out loss", "", 1.0),
    "heldout_margin": ("held-out margin", "", 1.0),
}
"""Objective of the search -> its name, unit and scale in pictures."""


def draw_curves(
    figure: Figure,
    palette: Palette,
    report: Mapping[str, Any],
    rows: ScoredRows,  # noqa: ARG001
) -> str | None:
    tune = report["tune"]
    name, unit, scale = MEASURES[tune["objective"]]
    curves = {trial["trial_id"]: _curve(trial, tune["objective"]) for trial in tune["trials"][:MAX_TRIALS]}
    curves = {trial: curve for trial, curve in curves.items() if curve}
    if not curves:
        return None
    size(figure, 2.6)
    axes = figure.add_subplot()
    axes.grid(color=palette.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for trial, curve in sorted(curves.items(), key=lambda item: item[0] == tune["best"]):
        best = trial == tune["best"]
        axes.plot(
            [step for step, _ in curve],
            [scale * value for _, value in curve],
            marker="o",
            markersize=4 if best else 3,
            color=palette.candidate if best else palette.muted,
            linewidth=2.4 if best else 1.2,
            alpha=1 if best else 0.55,
        )
    if unit == "%":
        axes.axhline(50, color=palette.muted, linewidth=1, linestyle=":")
    axes.set_xlabel("training step")
    axes.set_ylabel(f"{name} ({unit})" if unit else name)
    return f"{name.capitalize()} of {len(curves)} trials by training step; the best is {tune['best']}."


def draw_parallel(
    figure: Figure,
    palette: Palette,
    report: Mapping[str, Any],
    rows: ScoredRows,  # noqa: ARG001
) -> str | None:
    objective = report["tune"]["objective"]
    trials = [trial for trial in report["tune"]["trials"] if trial.get(objective) is not None][:MAX_TRIALS]
    names = sorted({name for trial in trials for name in trial.get("config") or {}})[:8]
    if len(trials) < 2 or not names:
        return None
    size(figure, 2.9)
    axes = figure.add_subplot()
    columns = [_Column(name, [(trial.get("config") or {}).get(name) for trial in trials]) for name in names]
    name, _, _ = MEASURES[objective]
    columns.append(_Column(name.replace(" ", "\n", 1), [trial[objective] for trial in trials]))
    best = report["tune"]["best"]
    for index, trial in sorted(enumerate(trials), key=lambda item: item[1]["trial_id"] == best):
        is_best = trial["trial_id"] == best
        axes.plot(
            range(len(columns)),
            [column.heights[index] for column in columns],
            color=palette.candidate if is_best else palette.muted,
            linewidth=2.4 if is_best else 1.2,
            alpha=1 if is_best else 0.5,
        )
    _label_columns(axes, palette, columns)
    return (
        f"Settings of {len(trials)} trials: {', '.join(clean(name) for name in names)}; the best is {best}."
    )


class _Column:
    """One axis of the parallel coordinates: heights from 0 to 1, on a log scale over wide ranges."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        numbers = [
            value for value in values if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if len(numbers) == len(values):
            log = min(numbers) > 0 and max(numbers) > 20 * min(numbers)
            places = [math.log(value) if log else float(value) for value in numbers]
            ends = (min(places), max(places))
            self.labels = [(0.0, f"{min(numbers):.3g}"), (1.0, f"{max(numbers):.3g}")]
        else:
            words = sorted({str(value) for value in values})
            places = [float(words.index(str(value))) for value in values]
            ends = (0.0, float(len(words) - 1))
            self.labels = [(_place(index, ends), clean(word, 12)) for index, word in enumerate(words[:6])]
        if ends[0] == ends[1]:
            self.labels = [(0.5, self.labels[0][1])]
        self.heights = [_place(place, ends) for place in places]


def _place(value: float, ends: tuple[float, float]) -> float:
    return 0.5 if ends[0] == ends[1] else (value - ends[0]) / (ends[1] - ends[0])


def _label_columns(axes: Axes, palette: Palette, columns: Sequence[_Column]) -> None:
    for index, column in enumerate(columns):
        axes.axvline(index, color=palette.grid, linewidth=1)
        for height, label in column.labels:
            below = height < 0.5
            axes.annotate(
                label,
                (index, height),
                xytext=(0, -4 if below else 4),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
                fontsize=9,
                color=palette.muted,
            )
    axes.set_xticks(range(len(columns)), [_wrapped(column.name) for column in columns], fontsize=9)
    axes.set_ylim(-0.18, 1.18)
    axes.set_xlim(-0.4, len(columns) - 0.6)
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _wrapped(name: str) -> str:
    return name if "\n" in name else clean(name).replace("_", "\n").replace(".", "\n")


def draw_time(
    figure: Figure,
    palette: Palette,
    report: Mapping[str, Any],
    rows: ScoredRows,  # noqa: ARG001
) -> str | None:
    stages = {
        name: float(value)
        for name, value in report["timings_s"].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if not stages:
        return None
    size(figure, 0.7 + 0.3 * len(stages))
    axes = figure.add_subplot()
    seconds = list(stages.values())
    axes.barh(range(len(stages)), seconds, color=palette.candidate, alpha=0.75, height=0.6)
    for index, value in enumerate(seconds):
        axes.annotate(
            duration(value),
            (value, index),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=palette.ink,
        )
    axes.set_yticks(range(len(stages)), [clean(name) for name in stages])
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.set_xlim(0, max([*seconds, 1e-9]) * 1.15)
    axes.set_xlabel("seconds")
    return "Time per stage: " + ", ".join(f"{name} {duration(value)}" for name, value in stages.items()) + "."


def duration(seconds: float) -> str:
    """Seconds as people read them: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _curve(trial: Mapping[str, Any], measure: str) -> list[tuple[float, float]]:
    return [
        (row["step"], row[measure])
        for row in trial.get("curve") or ()
        if row.get("step") is not None and row.get(measure) is not None
    ]
