"""The models that a registry keeps: models/<sha256>/model.gguf, each a copy of its own, verified."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from serving.champion import RegistryError, is_sha256
from serving.files import copy_hashed, sha256_of, sync_folder
from serving.storage.mirror import origin, renewed, shared
from serving.storage.node_cache import local_copy, with_sha256
from serving.storage.remote import Remote, StorageError

EXPECTED_FILE = "expected.json"
"""Beside a model: what it said when it was promoted."""


def keep(models: Path, source: Path, sha256: str) -> Path:
    """A copy under `models`/<sha256>; a later change of `source` does not reach it. Raises RegistryError.

    Of a registry in an object store the copy is there, and the path is where its mirror would have it.
    """
    if not is_sha256(sha256):
        raise RegistryError(f"sha256 must be 64 lowercase hex digits, not {sha256[:80]!r}")
    if not source.is_file():
        raise RegistryError(f"{source}: no such model file")
    folder = models / sha256
    model = folder / "model.gguf"
    if (store := origin(model)) is not None:
        _upload(source, store.at(model)[0], sha256)
        return model
    if model.is_file() and sha256_of(model) == sha256:
        return model.resolve()
    models.mkdir(exist_ok=True)
    _copy(source, folder, sha256)
    return model.resolve()


def verify(model: Path, sha256: str) -> None:
    """Raises RegistryError when the file is missing or another than it should be."""
    if not model.is_file():
        raise RegistryError(f"{model}: the model file is missing")
    if (found := sha256_of(model)) != sha256:
        raise RegistryError(f"{model}: sha256 is {found[:12]}…, expected {sha256[:12]}…")


def is_there(model: Path) -> bool:
    """Whether the registry has a model's file, whatever is in it. Raises RegistryError."""
    if (store := origin(model)) is None:
        return model.is_file()
    try:
        return store.at(model)[0].stamp() is not None
    except StorageError as error:
        raise RegistryError(str(error)) from error


def model_here(model: Path, sha256: str) -> Path:
    """A model of the registry as a file of this node, fetched where it is in an object store.

    Raises RegistryError when it cannot be fetched.
    """
    try:
        return local_copy(with_sha256(shared(model), sha256))
    except FileNotFoundError as error:
        raise RegistryError(f"{shared(model)}: the model file is missing") from error
    except StorageError as error:
        raise RegistryError(str(error)) from error


def expected_here(model: Path) -> Path:
    """The file of what the model said when it was promoted, there or not. Raises RegistryError."""
    try:
        return renewed(model.with_name(EXPECTED_FILE))
    except StorageError as error:
        raise RegistryError(str(error)) from error


def changed_s(models: Path) -> dict[str, float]:
    """When each model that is kept was last changed, by its sha256."""
    if (store := origin(models)) is None:
        return {path.name: path.stat().st_mtime for path in models.glob("*")}
    stamps = store.at(models)[0].listing()
    return {name.partition("/")[0]: stamp.modified_s for name, stamp in sorted(stamps.items())}


def _upload(source: Path, model: Remote, sha256: str) -> None:
    """Unless it is there and sound: so a damaged object is repaired by promoting its model again."""
    stamp = model.stamp()
    if stamp is None or stamp.num_bytes != source.stat().st_size or model.sha256() != sha256:
        verify(source, sha256)
        model.upload(source)


def _copy(source: Path, folder: Path, sha256: str) -> None:
    for stale in folder.parent.glob(".*.tmp"):  # of a writer that died; the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    beside = folder.parent / f".{sha256}.tmp"
    beside.mkdir()
    try:
        written = copy_hashed(source, beside / "model.gguf")
        if written != sha256:
            raise RegistryError(f"{source}: sha256 is {written[:12]}…, expected {sha256[:12]}…")
        if folder.exists():  # a damaged copy; replicas that have it open keep their own inode
            shutil.rmtree(folder)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(folder.parent)
