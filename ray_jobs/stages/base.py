"""What a stage is, and how one is skipped, resumed, refused or run."""

import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ray_jobs.config import Config
from ray_jobs.data.files import files_of
from ray_jobs.errors import ConfigError, RunConflict, StageFailed
from ray_jobs.runs import RunFolder, StageState, file_sha256, json_sha256, now
from serving.storage.mirror import discard

log = logging.getLogger(__name__)

FULL = os.strerror(errno.ENOSPC)
ABSENT = "absent"
CONTENTS = ": "
"""In the name of an input that is the hash of what a setting names: `judge.model: file`."""


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    `settings` names the config fields that its outputs depend on, `needs` the files of earlier stages,
    `folders` what it writes into (emptied when the stage is redone), and `run` does the work and
    returns the relative paths of its outputs.
    """

    name: str
    settings: tuple[str, ...]
    needs: tuple[str, ...]
    folders: tuple[str, ...]
    run: Callable[[Config, RunFolder], list[str]]
    extra_inputs: Callable[[Config], dict[str, str]] = lambda _: {}
    more_needs: Callable[[RunFolder], tuple[str, ...]] = lambda _: ()
    """Files of earlier stages whose number is known only once these are done."""
    resumes: bool = True
    """Whether a try that came to no end leaves what the next one of the same inputs goes on from."""
    free: tuple[str, ...] = ()
    """Of the `settings`, fields that say how the work is placed and decide no output."""
    holds: Callable[[Config, RunFolder], bool] = lambda *_: True
    """Whether what it made outside of the run's folder is still there; asked once the outputs are whole."""


def config_inputs(stage: Stage, config: Config) -> dict[str, str]:
    """The config fields that the stage depends on: dotted name -> value as text."""
    inputs = {}
    for dotted in stage.settings:
        value: Any = config
        for part in dotted.split("."):
            value = getattr(value, part)
        inputs.update(
            flatten(dotted, value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
        )
    decisive = {name: text for name, text in inputs.items() if name not in stage.free}
    return decisive | stage.extra_inputs(config)


def data_files(*sources: str) -> dict[str, str]:
    """Hashes of the local files that data sources name, so that a changed one is noticed."""
    return {str(path): file_sha256(path) for source in sources for path in files_of(source)}


def flatten(prefix: str, value: Any) -> dict[str, str]:
    """Nested mappings as dotted names; everything else as text."""
    if isinstance(value, Mapping) and value:
        return {
            key: text
            for name, item in value.items()
            for key, text in flatten(f"{prefix}.{name}", item).items()
        }
    return {prefix: repr(value)}


def stage_inputs(stage: Stage, config: Config, run: RunFolder) -> dict[str, str]:
    """Everything that decides the stage's outputs. Raises ConfigError when an earlier stage is missing."""
    inputs = config_inputs(stage, config)
    for relative in (*stage.needs, *stage.more_needs(run)):
        path = run.path(relative)
        if not path.is_file():
            raise ConfigError(
                f"{path} is missing: stage {stage.name!r} needs an earlier stage; run the pipeline"
            )
        inputs[relative] = file_sha256(path)
    return inputs


def refuse_changed(
    stage: Stage, before: Mapping[str, str], inputs: Mapping[str, str], run: RunFolder
) -> None:
    """Raises RunConflict, naming what changed, when what the stage made came from other inputs.

    The contents of what a setting names (`judge.model: file`) are compared where they are known: not of a run
    that was begun before they were recorded, nor on a machine that does not have the file.
    """
    changed = sorted(
        key
        for key in before.keys() | inputs.keys()
        if before.get(key, ABSENT) != inputs.get(key, ABSENT)
        and key not in stage.free  # which was not, when the run was begun
        and not (CONTENTS in key and (key not in before or key not in inputs))
    )
    if changed:
        what = ", ".join(
            f"{key} (was {before.get(key, ABSENT)}, is {inputs.get(key, ABSENT)})" for key in changed[:3]
        )
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunConflict(
            f"{run.address}: stage {stage.name!r} was made with other inputs: {what}{more}; "
            f"take another name, or redo it with --force {stage.name}"
        )


def made_before(stage: Stage, run: RunFolder) -> StageState | None:
    """What is known of the stage; None where nothing would come of it, whatever the inputs are now."""
    state = run.states().get(stage.name)
    return None if state is None or (state.status != "done" and not stage.resumes) else state


def check_unchanged(stages: Sequence[Stage], config: Config, run: RunFolder) -> None:
    """Refuses a changed config before anything is started. `stages`: the first ones, in order.

    What may be a file of an earlier stage, which is not there yet, is left to `run_stage`.
    """
    folders = {folder for stage in stages for folder in stage.folders}
    for stage in stages:
        if state := made_before(stage, run):
            before, inputs = (
                {key: text for key, text in each.items() if key.partition("/")[0] not in folders}
                for each in (state.inputs, config_inputs(stage, config))
            )
            refuse_changed(stage, before, inputs, run)


def forget(stages: Iterable[Stage], run: RunFolder) -> None:
    """Throws away what the stages made, so that they are done anew."""
    for stage in stages:
        run.drop_state(stage.name)
        for folder in stage.folders:
            discard(run.path(folder))


def run_stages(stages: Sequence[Stage], names: Collection[str], config: Config, run: RunFolder) -> None:
    """Brings the named stages to their end, in order.

    What stands on a stage that was done anew is thrown away: results never mix.
    """
    for number, stage in enumerate(stages):
        if stage.name in names and run_stage(stage, config, run):
            forget(stages[number + 1 :], run)


def run_stage(stage: Stage, config: Config, run: RunFolder) -> bool:
    """Brings the stage to its end; true when there was something to do.

    Skipped when its outputs are whole and made from the same inputs. What an interrupted try of the
    same inputs finished is kept.
    """
    inputs = stage_inputs(stage, config, run)
    state = made_before(stage, run)
    if state is not None:
        refuse_changed(stage, state.inputs, inputs, run)
    if state is not None and state.status == "done":
        if run.outputs_whole(state) and stage.holds(config, run):
            log.info("%-8s done before, nothing to do", stage.name)
            return False
        log.warning("%-8s outputs are missing or damaged; doing it again", stage.name)
        state = None
    if state is None:
        forget([stage], run)
    _work(stage, config, run, inputs, before=state.seconds if state else 0.0)
    return True


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed for want of room, here or in a worker whose error Ray passes on."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, Exception) and FULL in str(error)


def _work(stage: Stage, config: Config, run: RunFolder, inputs: dict[str, str], before: float) -> None:
    started, clock = now(), time.monotonic()

    def record(status: str, outputs: dict[str, str]) -> None:
        seconds = round(before + time.monotonic() - clock, 3)
        finished = None if status == "running" else now()
        run.set_state(
            stage.name, StageState(status, json_sha256(inputs), inputs, outputs, started, finished, seconds)
        )

    log.info("%-8s starts", stage.name)
    record("running", {})
    try:
        outputs = stage.run(config, run)
        run.publish(outputs)
    except BaseException as error:
        with suppress(OSError):  # a full disk takes no state either; the old one then says `running`
            record("failed", {})
        if is_full_disk(error):
            raise StageFailed(f"{stage.name}: {run.root}: {FULL}; make room and run it again") from error
        raise
    record("done", {relative: file_sha256(run.path(relative)) for relative in sorted(outputs)})
    log.info("%-8s done in %.0f s", stage.name, time.monotonic() - clock)
