"""A run in MLflow: one parent run, a nested run for each trial, the report, the registered winner."""

import os
from collections.abc import Mapping
from typing import Any

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial
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

PARENT = "mlflow.parentRunId"
KEY, TRIAL, SEARCH = "orpo.key", "orpo.trial", "orpo.search"
"""Tags by which a run is found that was made and not noted."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own defaults hold a finished run up for four minutes when its server is gone."""


def to_mlflow(config: Config, folder: RunFolder, uri: str) -> None:
    """Brings the store at `uri` up to date. Raises ImportError without MLflow, and whatever MLflow raises."""
    client = _client(uri)
    told = Told(folder, "mlflow", without_passwords(uri), flat_params(config))
    if (old := told.superseded()) is not None:
        client.set_tag(old, "superseded", "true")
    if told.run_id is None:
        told.begin(_parent_run(client, config, told))
    parent = str(told.run_id)
    told.once("tune", lambda: _trials(client, config, folder, parent, told.states["tune"].inputs_sha256))
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


def _parent_run(client: Any, config: Config, told: Told) -> str:
    """The run that stands for this one; one that was cut off while it was made is gone on with."""
    found = client.get_experiment_by_name(config.tracking.experiment)
    experiment = found.experiment_id if found else client.create_experiment(config.tracking.experiment)
    tags = {"base": config.model.base, "judge": config.judge.model, KEY: told.key}
    begun = _runs_with(client, experiment, KEY, told.key)
    run = begun[0] if begun else client.create_run(experiment, tags=tags, run_name=config.name)
    _log(client, run.info.run_id, params=flat_params(config))
    return str(run.info.run_id)


def _runs_with(client: Any, experiment: str, tag: str, value: str) -> list[Any]:
    """All of them: a server gives no more than a page at once."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", page_token=token)
        runs += page
        if not (token := page.token):
            return runs


def _trials(client: Any, config: Config, folder: RunFolder, parent: str, search: str) -> None:
    """A nested run for each trial. Those of a try that was cut off are gone on with.

    `search`: of the inputs of the search, whose trials these are: another one may have some of the same name.
    """
    from ray_jobs.search.trials import best_trial
    from ray_jobs.stages.trial_table import read_trials

    trials = read_trials(folder.path("tune/trials.parquet"))
    best = best_trial(trials, config.search.objective)
    experiment = client.get_run(parent).info.experiment_id
    nested = _runs_with(client, experiment, PARENT, parent)
    begun = {run.data.tags[TRIAL]: run for run in nested if run.data.tags.get(SEARCH) == search}
    for trial in trials:
        is_best = best is not None and trial.trial_id == best.trial_id
        tags = {PARENT: parent, "best": str(is_best).lower(), TRIAL: trial.trial_id, SEARCH: search}
        name = f"{config.name}/{trial.trial_id}"
        run = begun.get(trial.trial_id) or client.create_run(experiment, tags=tags, run_name=name)
        if run.info.status == "RUNNING":
            _trial(client, run, trial)
    if best is not None:
        _log(client, parent, metrics=best_figures(best))


def _trial(client: Any, run: Any, trial: Trial) -> None:
    """What a run lacks of its trial, and its end."""
    run_id = run.info.run_id
    _log(client, run_id, params={key: str(value) for key, value in trial.config.items()})
    told = {(key, point.step) for key in run.data.metrics for point in client.get_metric_history(run_id, key)}
    for row in trial.curve:
        step = int(row.get("step", 0))
        values = {key: value for key, value in row.items() if key != "step" and (key, step) not in told}
        _log(client, run_id, metrics=values, step=step)
    client.set_terminated(run_id, "FAILED" if trial.status == "failed" else "FINISHED")


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
    sha256 = folder.read_json(f"models/{model}/manifest.json")["sha256"]
    begun = client.search_model_versions(f"name = '{name}' and run_id = '{parent}'")
    version = next((each for each in begun if each.tags.get("sha256") == sha256), None)
    version = version or client.create_model_version(
        name,
        source=folder.path("models", model).resolve().as_uri(),
        run_id=parent,
        tags={"sha256": sha256, "model": model},
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
