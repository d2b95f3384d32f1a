"""A run in Weights & Biases: a run for the whole and one for each trial, in a group of the run's name."""

import os
import secrets
from pathlib import Path
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
)
from ray_jobs.tracking.settings import WandbSettings
from ray_jobs.tracking.told import Told

OFFLINE = "offline-run-"
"""How W&B begins the name of a folder with a run that was not sent."""


def to_wandb(config: Config, folder: RunFolder, settings: WandbSettings) -> None:
    """Brings the project up to date. Raises ImportError without W&B, RuntimeError without a key, and what W&B
    raises.
    """
    told = Told(folder, "wandb", f"{settings.entity or ''}/{settings.project}", flat_params(config))
    if not told.has_news and not told.ended_otherwise:
        return
    wandb = _module(settings)
    if told.superseded() is not None or told.run_id is None:
        told.begin(secrets.token_hex(4))
    opener = _Opener(wandb, config, folder, settings, str(told.run_id))
    told.once("tune", lambda: _trials(opener, config, folder))
    run = opener.open(str(told.run_id), config.name, "run", flat_params(config))
    try:
        told.once("verdict", lambda: _verdict(wandb, run, config, folder))
        told.once("promote", lambda: _promoted(wandb, run, folder, settings))
        _summarise_search(run, config, folder)
    finally:
        opener.close(run, failed=told.failed)
    told.end()


def _module(settings: WandbSettings) -> Any:
    """W&B's module, with a key where one is needed: it would ask a terminal for it."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError(f"needs pip install 'orpo-on-ray[wandb]' ({error})") from error
    mode = settings.mode or os.environ.get("WANDB_MODE", "online")
    if mode == "online" and not wandb.login(prompt=False):
        raise RuntimeError("has no API key: set WANDB_API_KEY, or run `wandb login`")
    return wandb


class _Opener:
    """Opens runs of one group, quietly: no console capture, no machine statistics, no code."""

    def __init__(
        self, wandb: Any, config: Config, folder: RunFolder, settings: WandbSettings, prefix: str
    ) -> None:
        self._wandb, self._name, self._folder = wandb, config.name, folder
        self._settings = settings
        self.prefix = prefix

    def open(self, run_id: str, name: str, job_type: str, settings: dict[str, Any]) -> Any:
        quiet = self._wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True
        )
        return self._wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            mode=self._settings.mode,
            dir=str(self._folder.root),
            id=run_id,
            name=name,
            group=self._name,
            job_type=job_type,
            config=settings,
            resume="allow",
            settings=quiet,
        )

    def close(self, run: Any, *, failed: bool) -> None:
        """Ends a run. One that is kept for later becomes a part of the run folder, for other nodes too."""
        kept = Path(run.dir).parent
        run.finish(exit_code=int(failed))
        if kept.name.startswith(OFFLINE):
            root = self._folder.root.resolve()
            files = [path for path in sorted(kept.resolve().rglob("*")) if path.is_file()]
            own = [path for path in files if not path.is_symlink()]  # logs of W&B's own service are links
            self._folder.publish(path.relative_to(root).as_posix() for path in own)


def _searched(config: Config, folder: RunFolder) -> tuple[list[Trial], Trial | None]:
    from ray_jobs.search.trials import best_trial
    from ray_jobs.stages.trial_table import read_trials

    path = folder.path("tune/trials.parquet")
    trials = read_trials(path) if path.is_file() else []
    return trials, best_trial(trials, config.search.objective)


def _trials(opener: _Opener, config: Config, folder: RunFolder) -> None:
    trials, best = _searched(config, folder)
    for trial in trials:
        run = opener.open(
            f"{opener.prefix}-{trial.trial_id}",
            f"{config.name}/{trial.trial_id}",
            "trial",
            dict(trial.config),
        )
        for point in trial.curve:
            values = {key: value for key, value in point.items() if key != "step"}
            run.log(values, step=int(point.get("step", 0)))
        run.summary["best"] = best is not None and trial.trial_id == best.trial_id
        opener.close(run, failed=trial.status == "failed")


def _summarise_search(run: Any, config: Config, folder: RunFolder) -> None:
    _, best = _searched(config, folder)
    if best is not None:
        run.summary.update({"best_trial": best.trial_id, **best_figures(best)})


def _verdict(wandb: Any, run: Any, config: Config, folder: RunFolder) -> None:
    report = folder.read_json("report/report.json")
    run.summary.update(
        {"decision": report["decision"], "reason": report["reason"], **verdict_figures(report)}
    )
    artifact = wandb.Artifact(f"{config.name}-report", type="report")
    for name in report_files(folder):
        artifact.add_file(str(folder.path(name)), name)
    with artifact.new_file(CONFIG_FILE, encoding="utf-8") as file:
        file.write(config_text(folder))
    run.log_artifact(artifact)


def _promoted(wandb: Any, run: Any, folder: RunFolder, settings: WandbSettings) -> None:
    """The winner as a version of a model artifact; its file stays where the run has it."""
    model, name = promoted_model(folder), settings.registered_model
    if model is None or name is None:
        return
    sha256 = folder.read_json(f"models/{model}/manifest.json")["sha256"]
    artifact = wandb.Artifact(name, type="model", metadata={"sha256": sha256, "model": model})
    artifact.add_reference(folder.path("models", model, "model.gguf").resolve().as_uri())
    run.log_artifact(artifact, aliases=["champion"])
