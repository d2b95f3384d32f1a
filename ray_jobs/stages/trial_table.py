"""The trial table: Tune's results as plain rows, kept in a Parquet file and read back."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray_jobs.search.trials import METRICS, Trial
from ray_jobs.stages.causes import first_cause
from ray_jobs.stages.checkpoints import read_note
from ray_jobs.tables import read_rows, write_rows
from serving.storage.mirror import shared

TRIAL_COLUMNS = {
    "trial_id": "string",
    "status": "string",
    "config": "string",
    "checkpoint": "string",
    "steps": "int64",
    "seconds": "double",
    "error": "string",
    "heldout_accuracy": "double",
    "heldout_nll": "double",
    "heldout_loss": "double",
    "heldout_margin": "double",
    "curve": "string",
}
CURVE = (
    "step",
    "heldout_accuracy",
    "heldout_nll",
    "heldout_loss",
    "heldout_margin",
    "train_loss",
    "tokens_per_s",
)


DRAWN = re.compile(r"_[0-9a-f]{5,8}(?:_\d{5})?_(\d+)_")
"""Of a trial's folder as Tune names it: run_trial_ID_NUMBER_SETTINGS."""


def drawn_order(path: str) -> tuple[int, str]:
    """Sorts trials as they were drawn: Tune gives those of a restored search in another order."""
    name = Path(path).name
    found = DRAWN.search(name)
    return (int(found[1]) if found else 0, name)


def write_trials(path: Path, trials: list[Trial]) -> None:
    write_rows(path, [trial_row(trial) for trial in trials], TRIAL_COLUMNS)


def trial_from(number: int, result: Any, here: Callable[[str], str] = str) -> Trial:
    """A trial as plain data, out of Tune's result. `here`: a path that Ray names, on this node."""
    metrics = result.metrics or {}
    checkpoint = metrics.get("checkpoint_path")
    checkpoint = here(checkpoint) if isinstance(checkpoint, str) else None
    frame = result.metrics_dataframe
    rows = evaluations(checkpoint, [] if frame is None else frame.to_dict("records"))
    curve = [{key: float(row[key]) for key in CURVE if _finite(row.get(key))} for row in rows]
    steps = int(metrics.get("step", 0))
    return Trial(
        trial_id=f"trial-{number:03d}",
        status="failed" if result.error else "done",
        config=dict(result.config or {}),
        checkpoint=checkpoint,
        steps=steps,
        seconds=round(float(metrics.get("time_total_s", 0.0)), 1),
        error=first_cause(str(result.error))[:500] if result.error else None,
        curve=curve,
        **{name: float(metrics[name]) for name in METRICS.values() if _finite(metrics.get(name))},
    )


def evaluations(checkpoint: Any, reported: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each step's evaluation once: those kept with the checkpoint, then those that came after it.

    Tune's own list lacks what was reported before an interruption, or holds it twice.
    """
    kept = read_note(Path(checkpoint)) if isinstance(checkpoint, str) else []
    last = kept[-1]["step"] if kept else -1
    later = {row["step"]: row for row in reported if row.get("step", -1) > last}
    return [*kept, *(later[step] for step in sorted(later))]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def trial_row(trial: Trial) -> dict[str, Any]:
    return {
        **asdict(trial),
        "checkpoint": trial.checkpoint and shared(Path(trial.checkpoint)),
        "config": json.dumps(trial.config, sort_keys=True),
        "curve": json.dumps(trial.curve),
    }


def read_trials(path: Path) -> list[Trial]:
    rows = read_rows(path)
    return [
        Trial(**{**row, "config": json.loads(row["config"]), "curve": json.loads(row["curve"])})
        for row in rows
    ]


def describe(trial: Trial) -> str:
    """The trial's settings and what it reached, in one line."""
    settings = ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in trial.config.items()
    )
    reached = f"held-out accuracy {trial.heldout_accuracy:.3f}, nll {trial.heldout_nll:.3f}"
    return f"{settings or 'the settings of the config'} · {reached}"
