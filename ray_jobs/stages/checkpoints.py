"""What lies with a checkpoint: the evaluations so far, and the hashes that tell whether it is whole.

A trial that is taken up from a checkpoint has the evaluations of an unbroken one; a finished trial whose end
was not recorded reports its last evaluation again instead of training; a damaged checkpoint is not used.
"""

import importlib.metadata
import json
import logging
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ray_jobs.runs import dump_json, file_sha256, write_whole
from ray_jobs.stages.group_notes import files_in, leave, left, remove
from serving.storage.mirror import discard, fetched, origin
from serving.storage.remote import StorageError, is_uri

log = logging.getLogger(__name__)

NOTE = "evaluations-{rank}.json"
STATES = "experiment_state-*.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a group's checkpoints."""


def write_note(folder: Path, rank: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Beside the files that worker `rank` wrote into its part of a checkpoint."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.match(NOTE.format(rank="*"))
    }
    write_whole(folder / NOTE.format(rank=rank), dump_json({"evaluations": rows, "files": files}))


def read_note(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """The evaluations up to the checkpoint; none where there is no readable note."""
    try:
        rows = json.loads(fetched(folder / NOTE.format(rank=rank)).read_bytes())["evaluations"]
    except StorageError:
        raise
    except (OSError, ValueError, LookupError):
        return []
    return list(rows)


def why_damaged(folder: Path) -> str | None:
    """Which file of a checkpoint is not what was written; None when all are."""
    notes = sorted(folder.glob(NOTE.format(rank="*")))
    if not notes:
        return f"{folder}: has no {NOTE.format(rank=0)}"
    for note in notes:
        try:
            files = json.loads(note.read_bytes())["files"]
        except (OSError, ValueError, LookupError) as error:
            return f"{note}: cannot be read: {error}"
        for name, sha256 in files.items():
            path = folder / name
            if not path.is_file():
                return f"{path}: is missing"
            if file_sha256(path) != sha256:
                return f"{path}: is damaged"
    return None


def repair_trial(trial: str) -> str | None:
    """Makes a trial's folder (a path or a URI) fit to go on from, where its list of checkpoints is damaged
    or behind. Returns the name of the checkpoint that it goes on from; None when it starts anew.

    Ray Train (2.60) writes the list in place: a kill in between, or a full disk, leaves a part of it, on
    which the trial would fail for ever. A new list is made of the newest whole checkpoint; without one the
    trial starts anew. And it lists a checkpoint up to two seconds after the workers have written it
    (RAY_TRAIN_HEALTH_CHECK_INTERVAL_S): a kill in between would have a finished trial train again.
    """
    snapshot = left(trial, SNAPSHOT)
    if snapshot is None:
        return None
    files = files_in(trial)
    if (listed := _listed(snapshot, files)) is not None:
        if newer := whole_since(trial, listed, files=files):
            log.info("%s: %s was not listed yet; going on from it", trial, newer)
            leave(trial, SNAPSHOT, dump_json(_list_of(trial, newer)))
        return newer or (listed[-1] if listed else None)
    newest = next((name for name in _checkpoints(files) if _is_whole(trial, name, files)), None)
    log.warning("%s/%s: is damaged; going on from %s", trial, SNAPSHOT, newest or "the start")
    if newest:
        leave(trial, SNAPSHOT, dump_json(_list_of(trial, newest)))
    else:
        remove(trial, SNAPSHOT)
    return newest


def _listed(snapshot: bytes, files: set[str]) -> list[str] | None:
    """Names of the listed checkpoints, oldest first; None if the list is damaged, or lists what is gone."""
    try:
        names = [str(result["checkpoint_dir_name"]) for result in json.loads(snapshot)["checkpoint_results"]]
    except (ValueError, LookupError, TypeError):
        return None
    return sorted(names) if set(names) <= set(_checkpoints(files)) else None


def whole_since(
    trial: str, listed: Sequence[str], *, alone: bool = False, files: set[str] | None = None
) -> str | None:
    """The name of the newest checkpoint after the listed ones to which each worker has come with its part.

    `listed`: names, oldest first. Which workers write is told by a listed one; of the worker of a trial that
    has no other (`alone`) it is known before. Names hold the time. `files`: what is in the trial's folder, by
    default looked up.
    """
    if not listed and not alone:
        return None
    files = files_in(trial) if files is None else files
    writers = _writers(listed[-1], files) if listed else {NOTE.format(rank=0)}
    newer = (name for name in _checkpoints(files) if not listed or name > listed[-1])
    fit = (name for name in newer if _writers(name, files) == writers)
    return next((name for name in fit if _is_whole(trial, name, files)), None)


def _checkpoints(files: Iterable[str]) -> list[str]:
    """Names of a trial's checkpoints, newest first."""
    tops = {name.partition("/")[0] for name in files if "/" in name}
    return sorted((top for top in tops if top.startswith("checkpoint_")), reverse=True)


def _writers(checkpoint: str, files: Iterable[str]) -> set[str]:
    """The notes of a checkpoint, one of each worker that has written its part."""
    return {
        name.removeprefix(f"{checkpoint}/")
        for name in files
        if fnmatch(name, f"{checkpoint}/{NOTE.format(rank='*')}")
    }


def _is_whole(trial: str, checkpoint: str, files: set[str]) -> bool:
    """Of an object store only the names are looked at: an object appears whole or not at all."""
    if not is_uri(trial):
        return why_damaged(Path(trial, checkpoint)) is None
    notes = [json.loads(left(f"{trial}/{checkpoint}", note) or b"{}") for note in _writers(checkpoint, files)]
    return bool(notes) and all(
        f"{checkpoint}/{name}" in files for note in notes for name in note.get("files", [""])
    )


def _list_of(trial: str, checkpoint: str) -> dict[str, Any]:
    """Ray Train's list with one checkpoint (`_CheckpointManagerState`, ray 2.60)."""
    note = json.loads(left(f"{trial}/{checkpoint}", NOTE.format(rank=0)) or b"")
    result = {"version": 0, "checkpoint_dir_name": checkpoint, "metrics": note["evaluations"][-1]}
    empty: tuple[str, ...] = (
        "pending_training_results",
        "pending_validation_specs",
        "validated_checkpoint_dir_names",
        "timed_out_validation_checkpoint_dir_names",
        "failed_validation_checkpoint_dir_names",
    )
    return {
        "ray_version": importlib.metadata.version("ray"),
        "checkpoint_results": [result],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": result,
        "current_report_index": 1,
        **{name: [] for name in empty},
    }


def prepare_search(experiment: Path) -> None:
    """Removes search states that a kill left unfinished; those of earlier tries are still there.

    A try keeps several files that belong together, told by the time in their names. A search that was killed
    before it wrote any state is removed: Ray Tune would try to restore it, and fail. In an object store there
    are no unfinished files.
    """
    if (store := origin(experiment)) is not None:
        files = store.at(experiment)[0].listing()
        if not any(fnmatch(name, STATES) for name in files):
            discard(experiment)
        return
    for state in experiment.glob(STATES):
        stamp = state.stem.removeprefix("experiment_state-")
        files_of_try = sorted(experiment.glob(f"*-{stamp}.*"))
        if damaged := [file for file in files_of_try if not _is_finished(file)]:
            log.warning("%s: is damaged; the state before it is taken", damaged[0])
            for file in files_of_try:
                file.unlink()
    if experiment.exists() and not any(experiment.glob(STATES)):
        shutil.rmtree(experiment)


def _is_finished(state: Path) -> bool:
    data = state.read_bytes()
    if state.suffix == ".pkl":
        return data.endswith(pickle.STOP)
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
