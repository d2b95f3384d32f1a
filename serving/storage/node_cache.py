"""What this node keeps: mirrors of folders and copies of files; the oldest go when they are too many."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from serving.files import LockTimeout, locked, sha256_of
from serving.storage.remote import Remote, Stamp, StorageError, is_uri, local_path

log = logging.getLogger(__name__)

DEFAULT_MAX_GB = 64.0
KEPT_S = 600.0
"""What was used in the last minutes is never thrown away: it may just be about to be opened."""
RUNS, VIEWS = "mirrors", "views"
"""Mirrors of runs to work in, and to look at."""
_FETCH_LIMIT_S = 3600.0
_HASH = "#sha256="


def default_cache_dir() -> Path:
    """$ORPO_CACHE, or `orpo-on-ray` in the platform's folder for caches."""
    if chosen := os.environ.get("ORPO_CACHE"):
        return local_path(chosen)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "orpo-on-ray"


def with_sha256(address: str, sha256: str | None) -> str:
    """The address of a file with what its content must be; a path stays as it is."""
    return f"{address}{_HASH}{sha256}" if sha256 and is_uri(address) else address


def local_copy(address: str) -> Path:
    """A file of this node with the content of `address`: a path itself, or what a URI names.

    Fetched once per node, whoever asks first, and verified where the address says its sha256. Raises
    StorageError, or FileNotFoundError where nothing is there.
    """
    if not is_uri(address):
        return Path(address)
    uri, _, sha256 = address.partition(_HASH)
    remote = Remote(uri)
    if sha256:
        key = sha256
    else:
        stamp = remote.stamp()
        if stamp is None:
            raise FileNotFoundError(uri)
        key = hashlib.sha256(f"{uri} {stamp}".encode()).hexdigest()
    folder = default_cache_dir().resolve() / "objects"
    target = folder / key / uri.rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{key}.lock", _FETCH_LIMIT_S):
        if not _is_good(target, sha256) and not (sha256 and _from_mirror(uri, target, sha256)):
            if sha256:
                _download_verified(remote, target, sha256)
            else:
                remote.download(target)
        os.utime(target.parent)
    trim(max_bytes())
    return target


def _download_verified(remote: Remote, target: Path, sha256: str) -> None:
    """An object that was found to be another than it should be is fetched again once it has changed."""
    refused, version = target.with_name(".refused"), repr(remote.stamp())
    if refused.is_file() and (said := refused.read_text().partition("\n"))[0] == version:
        found = said[2]
    else:
        remote.download(target)
        if (found := sha256_of(target)) == sha256:
            refused.unlink(missing_ok=True)
            return
        target.unlink()
        refused.write_text(f"{version}\n{found}")
    raise StorageError(f"{remote.uri}: sha256 is {found[:12]}…, expected {sha256[:12]}…")


def folder_copy(uri: str, files: Mapping[str, Stamp]) -> Path:
    """A folder of this node with these objects of the folder `uri`, as its listing tells them.

    Fetched once per node, and anew when one of them changed. Raises StorageError, or FileNotFoundError where
    one is gone.
    """
    remote = Remote(uri.rstrip("/"))
    key = hashlib.sha256(f"{remote.uri} {sorted(files.items())}".encode()).hexdigest()
    folder = default_cache_dir().resolve() / "objects"
    target = folder / key / remote.uri.rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{key}.lock", _FETCH_LIMIT_S):
        if not target.is_dir():
            half = target.parent / ".half"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            for name in files:
                (remote / name).download(half / name)
            half.rename(target)
        os.utime(target.parent)
    trim(max_bytes())
    return target


def mirror_path(uri: str, kind: str = RUNS) -> Path:
    """Where this node has the mirror of a folder, if it has one (serving.storage.mirror)."""
    uri = uri.rstrip("/")
    key = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return default_cache_dir().resolve() / kind / key / (PurePosixPath(uri).name or "folder")


def _from_mirror(uri: str, target: Path, sha256: str) -> bool:
    """Takes the file out of a mirror that this node has: where the driver runs, nothing is fetched twice."""
    folder, name = uri.rpartition("/")[::2]
    while "://" in folder and not folder.endswith(":/"):
        if (source := mirror_path(folder) / name).is_file():
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
            return _is_good(target, sha256)
        folder, last = folder.rpartition("/")[::2]
        name = f"{last}/{name}"
    return False


def _is_good(file: Path, sha256: str) -> bool:
    return file.is_file() and (not sha256 or sha256_of(file) == sha256)


def max_bytes() -> int:
    """ORPO_CACHE_MAX_GB: what copies and mirrors may take on this node, beside what is in use."""
    try:
        return int(float(os.environ.get("ORPO_CACHE_MAX_GB", "")) * 1e9)
    except ValueError:
        return int(DEFAULT_MAX_GB * 1e9)


def trim(limit_bytes: int) -> None:
    """Throws away the copies and mirrors that were not used for longest, down to `limit_bytes`.

    Those that a run holds, or that were used a moment ago, stay.
    """
    home = default_cache_dir().resolve()
    entries = sorted(_entries(home), key=lambda entry: entry[0])
    total = sum(size for _, size, _ in entries)
    for used_s, size, folder in entries:
        if total <= limit_bytes or time.time() - used_s < KEPT_S:
            return
        if _remove(folder):
            log.info("%s is no longer kept on this node", folder)
            total -= size


def _entries(home: Path) -> Iterator[tuple[float, int, Path]]:
    """When each was last used, its bytes, and its folder."""
    for folder in (
        *(home / "objects").glob("[!.]*"),
        *(home / "mirrors").glob("*"),
        *(home / "views").glob("*"),
    ):
        try:
            sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
            yield folder.stat().st_mtime, sum(sizes), folder
        except FileNotFoundError:  # another process was faster
            continue


def _remove(folder: Path) -> bool:
    """False for what another process holds."""
    lock = folder.with_name(f".{folder.name}.lock")
    if folder.parent.name != "objects":
        lock = next(folder.glob("*/.lock"), lock)
    try:
        with locked(lock, 0.0):
            shutil.rmtree(folder, ignore_errors=True)
    except (LockTimeout, OSError):
        return False
    return True
