"""One trial of a search: it trains in its own process, or drives its Ray Train group and passes the group's
reports on to Ray Tune.

Ray Tune (2.60) gets metrics from a group, never a checkpoint, so a population could not hand weights on.
Where it shall, each report carries a small Tune checkpoint that only says where the group's own one lies.
"""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.search.trials import with_overrides
from ray_jobs.stages.attempts import attempt
from ray_jobs.stages.checkpoints import repair_trial
from ray_jobs.stages.diverged import raise_if_diverged
from ray_jobs.stages.forgotten import taken_up
from ray_jobs.stages.ray_storage import ray_storage
from ray_jobs.stages.worker_groups import OwnProcess, gpus_seen, train_here, trains_alone

Worker = Callable[[dict[str, Any]], None]
POINTER = "pointer.json"


@dataclass(frozen=True)
class Pointer:
    """Where a trial's state lies: its Ray Train group, and the checkpoint of that group."""

    group: str
    checkpoint: str

    def of_trial(self, trial_id: str) -> bool:
        return self.group.partition("-")[0] == trial_id


def run_trial(overrides: dict[str, Any], *, job: dict[str, Any], worker: Worker) -> None:
    """A Tune trial: runs one `worker`, or drives one Ray Train group of them and passes its reports on.

    The group's name follows from the trial, so that a restored trial finds its checkpoints. A trial that
    takes over another one's weights gets a new group, which starts from that checkpoint.
    """
    import ray.tune

    trial_id = ray.tune.get_context().get_trial_id()
    pointer = read_pointer(ray.tune.get_checkpoint())
    group = group_name(trial_id, pointer, overrides)
    taken_over = pointer if pointer and not pointer.of_trial(trial_id) else None
    folder = f"{job['storage']}/{group}"
    settings = with_overrides(TrainingSettings.model_validate_json(job["training"]), overrides)
    job = {**job, "training": settings.model_dump_json(), "start_from": taken_over and taken_over.checkpoint}
    if not job["population"]:
        alone = job["workers"]["per_trial"] == 1
        left = taken_up(folder, job["training"], job["forgotten"], alone=alone)
        job["start_from"] = left and ray_storage(left)["storage_path"]
    repair_trial(folder)
    raise_if_diverged(folder)
    if in_own_process(job):
        train_here(worker, {**job, "group": OwnProcess(job["storage"], group)})
    else:
        say_which_cluster()
        with passing_on(group, job, taken_over) as callback, attempt(folder, job["search"]):
            trainer(job, worker, group, callback).fit()
    raise_if_diverged(folder)


def in_own_process(job: dict[str, Any]) -> bool:
    """Whether trials train in their own processes. Those of a population take turns, and are told what of
    theirs another takes over: each has its group."""
    return trains_alone(job) and not job["population"]


def say_which_cluster() -> None:
    """Has the group's processes know the cluster's address, which they would otherwise guess.

    What a killed group held is freed by an actor of Ray Train (2.60) that asks the State API whether the
    group still lives, and the State API looks for a cluster on the machine. Where it finds several, it fails,
    and the next trial waits for ever for what is never freed. One of `ray start` would be taken for this one:
    by Ray's code, a group that it does not know counts as dead, and a trial that runs would lose its workers.
    """
    from ray.train.v2._internal import constants

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # in place of `auto`, too
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def group_name(trial_id: str, pointer: Pointer | None, overrides: dict[str, Any]) -> str:
    """The trial's ID; with weights taken over also what was taken and with which settings it goes on."""
    if pointer is None:
        return trial_id
    if pointer.of_trial(trial_id):
        return pointer.group
    text = json.dumps([pointer.checkpoint, overrides], sort_keys=True)
    return f"{trial_id}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def trainer(job: dict[str, Any], worker: Worker, group: str, callback: UserCallback) -> Any:
    import ray.train

    from ray_jobs.stages.train_groups import group_trainer

    workers = job["workers"]
    gpus = workers["gpus_per_worker"]
    return group_trainer(job)(
        worker,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers["per_trial"],
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": workers["cpus_per_worker"], **({"GPU": gpus} if gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=group,
            **ray_storage(job["storage"]),
            callbacks=[callback],
            worker_runtime_env={"env_vars": gpus_seen(workers)},
            failure_config=ray.train.FailureConfig(max_failures=job["max_failures"]),
            # any checkpoint of a population may still be taken over
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=None if job["population"] else 1),
        ),
    )


@contextmanager
def passing_on(group: str, job: dict[str, Any], taken_over: Pointer | None) -> Iterator[UserCallback]:
    """A callback for the group, whose reports reach Ray Tune until the end of the block."""
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.util.queue import Queue

    if not job["population"]:
        yield TuneReportCallback()
        return
    queue = Queue(1, actor_options={"num_cpus": 0})
    extra = {"taken_over": taken_over.group.partition("-")[0]} if taken_over else {}
    # Ray Tune stops a trial by ending its process, which a thread that is no daemon would hold up.
    thread = threading.Thread(target=pass_on, args=(queue, extra), daemon=True)
    thread.start()
    yield PointingCallback(queue, group)
    queue.put(None)
    thread.join()


class PointingCallback(UserCallback):
    """Sends each report of a group, with where its checkpoint lies, to the trial that drives it."""

    def __init__(self, queue: Any, group: str) -> None:
        self._queue, self._group = queue, group

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the group's controller."""
        del run_context
        pointer = Pointer(self._group, checkpoint.path) if checkpoint else None
        self._queue.put((metrics[0], pointer))


def pass_on(queue: Any, extra: dict[str, Any]) -> None:
    """Reports to Ray Tune what comes through the queue, up to a None."""
    import ray.tune

    while (item := queue.get()) is not None:
        metrics, pointer = item
        if pointer is None:
            ray.tune.report({**metrics, **extra})
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, POINTER).write_text(json.dumps(asdict(pointer)), encoding="utf-8")
            checkpoint = ray.tune.Checkpoint.from_directory(folder)
            row = {**metrics, **extra, "checkpoint_path": pointer.checkpoint}
            ray.tune.report(row, checkpoint=checkpoint)


def read_pointer(checkpoint: Any) -> Pointer | None:
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Pointer(**json.loads(Path(folder, POINTER).read_text(encoding="utf-8")))
