"""Tells the trackers what a run folder holds: as often as wished, nothing twice.

What was told stands in `tracking.json` of the run folder, so that a command that is run again adds what
is new: trials after the search, figures and report after the verdict, the model version after a promotion.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder, StageState

log = logging.getLogger(__name__)

NOTES = "tracking.json"
REPORT_FILES = (
    "report/report.json",
    "report/report.md",
    "report/report.html",
    "data/report.md",
    "config.yaml",
)
FIGURES = ("mean_difference", "p_value", "wins", "ties", "losses", "num_prompts", "num_scored_both")


def publish(config: Config, folder: RunFolder) -> None:
    """Brings the configured trackers up to date; what goes wrong there is logged."""
    uri = config.tracking.mlflow_uri
    if uri is None:
        return
    try:
        to_mlflow(config, folder, uri)
    except ImportError as error:
        log.warning("tracking MLflow is missing: pip install 'orpo-on-ray[tracking]' (%s)", error)
    except Exception as error:  # whatever a tracker raises, the run itself stands
        log.warning("tracking %s: %s", uri, " ".join(str(error).split())[:300])
        log.debug("tracking failed", exc_info=error)


def to_mlflow(config: Config, folder: RunFolder, uri: str) -> None:
    """One parent run, a nested run for each trial, the report's figures and files, the registered winner."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    states = folder.states()
    notes = _notes(folder, uri)
    parent = notes.get("run_id") or _parent_run(client, config)
    notes["run_id"] = parent

    def once(stage: str, tell: Callable[[], None]) -> None:
        if _is_new(states, notes, stage):
            tell()
            notes.setdefault("told", {})[stage] = states[stage].inputs_sha256

    once("tune", lambda: _trials(client, config, folder, parent))
    once("verdict", lambda: _verdict(client, folder, parent))
    once("promote", lambda: _promoted(client, config, folder, parent))
    failed = any(state.status == "failed" for state in states.values())
    client.set_terminated(parent, "FAILED" if failed else "FINISHED")
    folder.write_json(NOTES, notes)


def _notes(folder: RunFolder, uri: str) -> dict[str, Any]:
    """What was told to this tracker before."""
    if not folder.path(NOTES).is_file():
        return {"uri": uri}
    notes: dict[str, Any] = folder.read_json(NOTES)
    return notes if notes.get("uri") == uri else {"uri": uri}


def _is_new(states: Mapping[str, StageState], notes: Mapping[str, Any], stage: str) -> bool:
    state = states.get(stage)
    told = notes.get("told", {}).get(stage)
    return state is not None and state.status == "done" and state.inputs_sha256 != told


def _parent_run(client: Any, config: Config) -> str:
    found = client.get_experiment_by_name(config.tracking.experiment)
    experiment = found.experiment_id if found else client.create_experiment(config.tracking.experiment)
    tags = {"base": config.model.base, "judge": config.judge.model}
    run = client.create_run(experiment, tags=tags, run_name=config.name)
    _log(client, run.info.run_id, params=flat_params(config))
    return str(run.info.run_id)


def flat_params(config: Config) -> dict[str, str]:
    """Every setting by its dotted name; nested values that are no section as text."""
    from ray_jobs.stages.base import flatten

    values = config.model_dump(mode="json")
    return {
        name: text.strip("'") for key, value in values.items() for name, text in flatten(key, value).items()
    }


def _trials(client: Any, config: Config, folder: RunFolder, parent: str) -> None:
    from ray_jobs.search.trials import best_trial
    from ray_jobs.stages.trial_table import read_trials

    trials = read_trials(folder.path("tune/trials.parquet"))
    best = best_trial(trials, config.search.objective)
    experiment = client.get_run(parent).info.experiment_id
    for trial in trials:
        is_best = best is not None and trial.trial_id == best.trial_id
        tags = {"mlflow.parentRunId": parent, "best": str(is_best).lower()}
        run = client.create_run(experiment, tags=tags, run_name=f"{config.name}/{trial.trial_id}")
        _log(client, run.info.run_id, params={key: str(value) for key, value in trial.config.items()})
        for point in trial.curve:
            values = {key: value for key, value in point.items() if key != "step"}
            _log(client, run.info.run_id, metrics=values, step=int(point.get("step", 0)))
        client.set_terminated(run.info.run_id, "FAILED" if trial.status == "failed" else "FINISHED")
    if best is not None:
        reached = {
            name: getattr(best, name) for name in ("heldout_accuracy", "heldout_nll", "heldout_margin")
        }
        known = {name: value for name, value in reached.items() if value is not None}
        _log(client, parent, metrics={f"best_{name}": value for name, value in known.items()})


def _verdict(client: Any, folder: RunFolder, parent: str) -> None:
    report = folder.read_json("report/report.json")
    client.set_tag(parent, "decision", report["decision"])
    client.set_tag(parent, "reason", report["reason"][:5000])
    figures = {name: float(report[name]) for name in FIGURES if report.get(name) is not None}
    for end, value in zip(("ci95_low", "ci95_high"), report.get("ci95") or (), strict=False):
        figures[end] = float(value)
    for model, row in report["models"].items():
        if row.get("mean_score") is not None:
            figures[f"{model}_mean_score"] = float(row["mean_score"])
    _log(client, parent, metrics=figures)
    for name in REPORT_FILES:
        if folder.path(name).is_file():
            client.log_artifact(parent, str(folder.path(name)), name.rpartition("/")[0] or None)


def _promoted(client: Any, config: Config, folder: RunFolder, parent: str) -> None:
    """The winner as a version of the registered model; its file stays where the run has it."""
    from mlflow.exceptions import MlflowException

    model, name = folder.read_json("promoted.json")["model"], config.tracking.registered_model
    if model is None or name is None:
        return
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)
    manifest = folder.read_json(f"models/{model}/manifest.json")
    version = client.create_model_version(
        name,
        source=folder.path("models", model).resolve().as_uri(),
        run_id=parent,
        tags={"sha256": manifest["sha256"], "model": model},
    )
    client.set_registered_model_alias(name, "champion", version.version)


def _log(
    client: Any,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, str] | None = None,
    step: int = 0,
) -> None:
    import time

    from mlflow.entities import Metric, Param

    now_ms = int(time.time() * 1000)
    points = [Metric(key, value, now_ms, step) for key, value in (metrics or {}).items()]
    settings = [Param(key, value[:6000]) for key, value in (params or {}).items()]
    for start in range(0, max(len(points), len(settings)), 100):  # as many as a server takes at once
        part = slice(start, start + 100)
        client.log_batch(run_id, metrics=points[part], params=settings[part])
