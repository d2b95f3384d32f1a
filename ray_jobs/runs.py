"""The run folder: the only thing that stages share.

    runs/<name>/
      config.yaml   resolved config, written first
      state.json    stage -> {status, started_at, finished_at, seconds, inputs_sha256, outputs}
      data/ tune/ models/ answers/ judgements/ report/

A local folder, or the mirror of one in an object store. Every file appears whole or not at all.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ray_jobs.errors import ConfigError, RunConflict
from serving.storage.mirror import open_mirror, publish, shared
from serving.storage.node_cache import with_sha256
from serving.storage.remote import Remote, absolute, folder_path, is_uri

JOB_FOLDER = "runtime_resources/working_dir_files"
"""Part of the path of the copy of the working directory in which a submitted Ray job runs."""


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside, syncs, and renames over: readers see the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Hash of a JSON value, the same for equal values whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dump_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class StageState:
    """What state.json says of one stage. `outputs`: relative path -> sha256."""

    status: str
    inputs_sha256: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    started_at: str
    finished_at: str | None
    seconds: float


class RunFolder:
    """One run's folder on a local path: the run itself, or its mirror where the run is in an object store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        """Where the run is, as people are told."""
        return shared(self.root)

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def shared(self, relative: str) -> str:
        """A file of the run as other nodes open it (serving.storage.node_cache.local_copy), with its hash."""
        address = shared(self.path(relative))
        return with_sha256(address, self._sha256(relative)) if is_uri(address) else address

    def _sha256(self, relative: str) -> str | None:
        """As the stage that made the file recorded it."""
        return next(
            (state.outputs[relative] for state in self.states().values() if relative in state.outputs), None
        )

    def write(self, relative: str, data: bytes) -> Path:
        path = self.path(relative)
        write_whole(path, data)
        publish(path)
        return path

    def write_json(self, relative: str, value: Any) -> Path:
        return self.write(relative, dump_json(value))

    def read_json(self, relative: str) -> Any:
        """Raises RunConflict, naming the file, when it is missing or damaged."""
        path = self.path(relative)
        try:
            return json.loads(path.read_bytes())
        except OSError as error:
            raise RunConflict(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise RunConflict(f"{path}: is damaged: {error}") from error

    def states(self) -> dict[str, StageState]:
        if not self.path("state.json").exists():
            return {}
        try:
            return {name: StageState(**state) for name, state in self.read_json("state.json").items()}
        except (AttributeError, TypeError) as error:
            raise RunConflict(f"{self.path('state.json')}: is no record of stages: {error}") from error

    def set_state(self, stage: str, state: StageState) -> None:
        states = {name: vars(old) for name, old in self.states().items()}
        self.write_json("state.json", states | {stage: vars(state)})

    def drop_state(self, stage: str) -> None:
        states = {name: vars(state) for name, state in self.states().items()}
        if states.pop(stage, None) is not None:
            self.write_json("state.json", states)

    def publish(self, outputs: Iterable[str]) -> None:
        """Makes files that were written to their paths part of the run, for other nodes and later tries."""
        for relative in outputs:
            publish(self.path(relative))

    def outputs_whole(self, state: StageState) -> bool:
        """True when every output is there with the hash that was recorded."""
        return all(
            self.path(relative).is_file() and file_sha256(self.path(relative)) == sha256
            for relative, sha256 in state.outputs.items()
        )


def open_run(storage: str, name: str) -> RunFolder:
    """The folder of a run under `storage`, created when it is missing.

    Raises ConfigError when the folder cannot be used, or would lie outside `storage`.
    """
    if is_uri(storage):
        return _open_mirror(f"{absolute(storage)}/{name}")
    refuse_fleeting("storage", storage)
    base = folder_path(storage).resolve()
    root = base / name
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"storage: {root}: {error.strerror}") from error
    if root.resolve() != root:
        raise ConfigError(f"name: {root} is a link that leads out of {base}")
    return RunFolder(root)


def refuse_fleeting(field: str, address: str) -> None:
    """Raises ConfigError for a folder in the copy of the working directory that a submitted job runs in."""
    if is_uri(address) or folder_path(address).is_absolute():
        return
    if JOB_FOLDER in Path.cwd().as_posix():
        raise ConfigError(
            f"{field}: {address!r} would vanish with the job; give a folder that all nodes mount"
        )


def _open_mirror(uri: str) -> RunFolder:
    try:
        Remote(uri).check()
        return RunFolder(open_mirror(uri))
    except OSError as error:
        raise ConfigError(f"storage: {error}") from error


def in_store_only(name: str) -> bool:
    """Of a run in an object store: what a command does not bring to this node, nor takes away from here.

    Ray and the engines read and write it there, or it waits there to be sent to a tracker.
    """
    block = "/unfinished/" in name and name.rpartition("/")[2].startswith("rows-")
    return block or name.startswith(("owners/", "tune/experiment/", "tune/trials/", "wandb/"))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
