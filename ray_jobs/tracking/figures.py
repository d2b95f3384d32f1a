"""What trackers are told: settings, figures of the verdict, files."""

import re
from collections.abc import Mapping
from typing import Any

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial

REPORT_FILES = (
    "report/report.json",
    "report/report.md",
    "report/report.html",
    "data/report.md",
)
CONFIG_FILE = "config.yaml"
_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]*@")
FIGURES = ("mean_difference", "p_value", "wins", "ties", "losses", "num_prompts", "num_scored_both")
REACHED = ("heldout_accuracy", "heldout_nll", "heldout_margin")


def flat_params(config: Config) -> dict[str, str]:
    """Every setting by its dotted name, without passwords; nested values that are no section as text."""
    from ray_jobs.stages.base import flatten

    values = config.model_dump(mode="json")
    return {
        name: without_passwords(text.strip("'"))
        for key, value in values.items()
        for name, text in flatten(key, value).items()
    }


def without_passwords(text: str) -> str:
    """The text without the passwords that addresses in it may hold: trackers have other readers."""
    return _PASSWORD.sub(r"\1:***@", text)


def config_text(folder: RunFolder) -> str:
    """The run's config as it was written down, for others to read."""
    return without_passwords(folder.path(CONFIG_FILE).read_text(encoding="utf-8"))


def verdict_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report by name; what it has none of is left out."""
    figures = {name: float(report[name]) for name in FIGURES if report.get(name) is not None}
    for end, value in zip(("ci95_low", "ci95_high"), report.get("ci95") or (), strict=False):
        figures[end] = float(value)
    for model, row in report["models"].items():
        if row.get("mean_score") is not None:
            figures[f"{model}_mean_score"] = float(row["mean_score"])
    return figures


def best_figures(best: Trial) -> dict[str, float]:
    """What the best trial reached on the held-out pairs."""
    reached = {f"best_{name}": getattr(best, name) for name in REACHED}
    return {name: value for name, value in reached.items() if value is not None}


def report_files(folder: RunFolder) -> list[str]:
    """The files that a run's report consists of, as far as they are there."""
    return [name for name in REPORT_FILES if folder.path(name).is_file()]


def promoted_model(folder: RunFolder) -> str | None:
    """Which model of the run became the champion; None: neither."""
    model = folder.read_json("promoted.json")["model"]
    return str(model) if model is not None else None
