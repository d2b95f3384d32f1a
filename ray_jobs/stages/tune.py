"""Ray Tune over ORPO trials, each a worker or a group of them; the best adapter and the trial table."""

import errno
import logging
import math
import os
import pickle
import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray_jobs.config import Config
from ray_jobs.errors import StageFailed
from ray_jobs.export.memory import check_export_memory
from ray_jobs.export.trained import trained_files
from ray_jobs.runs import RunFolder, replacing
from ray_jobs.search.trials import Trial, most_steps, ranked_trials, with_overrides
from ray_jobs.stages import cluster
from ray_jobs.stages.adapters import candidate_folder
from ray_jobs.stages.ahead import base_ahead
from ray_jobs.stages.base import Stage
from ray_jobs.stages.base_model import NOTE, base_of
from ray_jobs.stages.checkpoints import prepare_search, why_damaged
from ray_jobs.stages.forgotten import forgotten_trials
from ray_jobs.stages.gpu_share import with_gpu_share
from ray_jobs.stages.ray_storage import path_of_ray, ray_storage
from ray_jobs.stages.train_worker import train_worker
from ray_jobs.stages.trial_table import describe, drawn_order, trial_from, write_trials
from ray_jobs.stages.tune_search import (
    check_room,
    driver_share,
    most_drawn,
    param_space,
    tune_config,
    worker_share,
)
from serving.storage.mirror import fetched_folder, shared

log = logging.getLogger(__name__)

ROOM = 2**20
"""Bytes: with less of it a disk is full."""


def run(config: Config, folder: RunFolder) -> list[str]:
    cluster.connect()
    check_export_memory(base_of(config, folder))
    config = with_gpu_share(config)
    check_room(config)
    job = trial_job(config, folder)
    with base_ahead(config, folder):
        results = fit(config, job, folder.path("tune"))
    in_order = sorted(results, key=lambda result: drawn_order(result.path))
    here = partial(path_of_ray, folder=folder.root)
    trials = [trial_from(number, result, here) for number, result in enumerate(in_order)]
    write_trials(folder.path("tune/trials.parquet"), trials)
    ranked = ranked_trials(trials, config.search.objective)[: config.verdict.num_candidates]
    if not ranked:
        reasons = {trial.error or "kept no checkpoint" for trial in trials}
        raise StageFailed(
            f"tune: none of {len(trials)} trials can be used: {'; '.join(sorted(reasons))[:2000]}"
        )
    log.info("tune     best is %s: %s", ranked[0].trial_id, describe(ranked[0]))
    kept = [candidate_folder(number) for number in range(1, len(ranked) + 1)]
    for trial, relative in zip(ranked, kept, strict=True):
        keep_best(trial, folder.path(relative))
    files = [f"{relative}/{name}" for relative in kept for name in trained_files(folder.path(relative))]
    return ["tune/trials.parquet", *files]


def trial_job(config: Config, folder: RunFolder) -> dict[str, Any]:
    """What every worker is told, as plain data."""
    training = with_overrides(config.training, {"seed": config.seed})
    return {
        "base": config.model.model_dump_json(),
        "base_sha256": folder.read_json(NOTE)["sha256"],
        "training": training.model_dump_json(),
        "train": folder.shared("data/train.parquet"),
        "heldout": folder.shared("data/heldout.parquet"),
        "threads": max(1, math.floor(config.workers.cpus_per_worker)),
        "workers": config.workers.model_dump(),
        "max_failures": config.search.max_failures,
        "population": config.search.scheduler == "pbt",
        "storage": shared(folder.path("tune/trials")),
        "search": uuid.uuid4().hex,
    }


def fit(config: Config, job: dict[str, Any], folder: Path) -> Any:
    """Runs the search, or takes up an interrupted one: finished trials are not run again."""
    import ray.tune

    from ray_jobs.stages.searchers import run_at_once
    from ray_jobs.stages.trial_log import TrialLog
    from ray_jobs.stages.tune_trial import in_own_process, run_trial

    experiment = folder / "experiment"
    prepare_search(experiment)
    job = {**job, "forgotten": forgotten_trials(job["storage"], shared(experiment))}
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, job=job, worker=train_worker),
        worker_share(config) if in_own_process(job) else driver_share(config),
    )
    # Tune's own handler ends the search as if it were done, with what the trials had reached.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    where = ray_storage(shared(experiment))
    place, store = where["storage_path"], where["storage_filesystem"]
    if ray.tune.Tuner.can_restore(place, storage_filesystem=store):
        log.info("tune     takes up the search in %s", shared(experiment))
        run_at_once(most_drawn(config))
        tuner = ray.tune.Tuner.restore(
            place, trainable=trainable, resume_errored=True, storage_filesystem=store
        )
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=param_space(config.search),
            tune_config=tune_config(config),
            run_config=ray.tune.RunConfig(
                name="experiment",
                **ray_storage(shared(folder)),
                # Trials in processes of their own; of a group the driver: Ray Train sees to its workers.
                failure_config=ray.tune.FailureConfig(max_failures=config.search.max_failures),
                callbacks=[TrialLog(config.search.num_trials, most_steps(config.training, config.search))],
                verbose=0,
            ),
        )
    return with_errors(tuner.fit, folder)


def with_errors(fit_all: Callable[[], Any], folder: Path) -> Any:
    """The results, each failed trial's with its error.

    Ray Tune (2.60) reads errors from files beside the trials'. One that could not be written for want of room
    would make a failed trial pass for one that ended, or cannot be read. Raises StageFailed for these.
    """
    try:
        results = fit_all()
        lost = results.num_errors - sum(result.error is not None for result in results)
    except (EOFError, pickle.UnpicklingError):
        lost = 1
    if lost:
        room = shutil.disk_usage(folder).free
        why = os.strerror(errno.ENOSPC) if room < ROOM else "could not be written"
        raise StageFailed(f"tune: {lost} trial(s) failed, and the reason was not kept: {folder}: {why}")
    return results


def keep_best(best: Trial, folder: Path) -> None:
    """Copies the winning adapter, or all weights, beside the trial table, whole."""
    assert best.checkpoint is not None
    checkpoint = fetched_folder(Path(best.checkpoint))
    if reason := why_damaged(checkpoint):
        raise StageFailed(f"tune: {reason}; redo it with --force tune")
    shutil.rmtree(folder, ignore_errors=True)
    for name in trained_files(checkpoint):
        source = checkpoint / name
        if not source.is_file():
            raise StageFailed(f"tune: {source} is missing: the best trial kept no weights")
        with source.open("rb") as there, replacing(folder / name) as here:
            shutil.copyfileobj(there, here, ROOM)


STAGE = Stage(
    name="tune",
    settings=("seed", "model", "training", "search", "verdict.num_candidates", "workers.per_trial"),
    needs=("data/train.parquet", "data/heldout.parquet", NOTE),
    folders=("tune",),
    run=run,
    free=(
        "search.max_concurrent_trials", "search.max_failures", "training.logging_steps",
        "training.keep_checkpoints", "training.tensorboard", "training.mlflow",
    ),
)  # fmt: skip
