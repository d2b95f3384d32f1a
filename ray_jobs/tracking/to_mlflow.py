"""A run in MLflow: one parent run, a nested run for each trial, the report, the registered winner."""

import os
from collections.abc import Mapping
from typing import Any

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.tracking.figures import (
    CONFIG_FILE,
    best_figures,
    config_text,
    flat_params,
    promoted_model,
    report_files,
    verdict_figures,
    without_passwords,
)
from ray_jobs.tracking.told import Told

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own defaults hold a finished run up for four minutes when its server is gone."""


def to_mlflow(config: Config, folder: RunFolder, uri: str) -> None:
    """Brings the store at `uri` up to date. Raises ImportError without MLflow, and whatever MLflow raises."""
    client = _client(uri)
    told = Told(folder, "mlflow", without_passwords(uri), flat_params(config))
    if (old := told.superseded()) is not None:
        client.set_tag(old, "superseded", "true")
    if told.run_id is None:
        told.begin(_parent_run(client, config))
    parent = str(told.run_id)
    told.once("tune", lambda: _trials(client, config, folder, parent))
    told.once("verdict", lambda: _verdict(client, folder, parent))
    told.once("promote", lambda: _promoted(client, config, folder, parent))
    client.set_terminated(parent, "FAILED" if told.failed else "FINISHED")
    told.end()


def _client(uri: str) -> Any:
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise ImportError(f"needs pip install 'orpo-on-ray[tracking]' ({error})") from error
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _parent_run(client: Any, config: Config) -> str:
    found = client.get_experiment_by_name(config.tracking.experiment)
    experiment = found.experiment_id if found else client.create_experiment(config.tracking.experiment)
    tags = {"base": config.model.base, "judge": config.judge.model}
    run = client.create_run(experiment, tags=tags, run_name=config.name)
    _log(client, run.info.run_id, params=flat_params(config))
    return str(run.info.run_id)


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
        _log(client, parent, metrics=best_figures(best))


def _verdict(client: Any, folder: RunFolder, parent: str) -> None:
    report = folder.read_json("report/report.json")
    client.set_tag(parent, "decision", report["decision"])
    client.set_tag(parent, "reason", report["reason"][:5000])
    _log(client, parent, metrics=verdict_figures(report))
    for name in report_files(folder):
        client.log_artifact(parent, str(folder.path(name)), name.rpartition("/")[0] or None)
    client.log_text(parent, config_text(folder), CONFIG_FILE)


def _promoted(client: Any, config: Config, folder: RunFolder, parent: str) -> None:
    """The winner as a version of the registered model; its file stays where the run has it."""
    from mlflow.exceptions import MlflowException

    model, name = promoted_model(folder), config.tracking.registered_model
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
