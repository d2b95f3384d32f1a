"""A folder of an object store as a folder of this node, for the one process that works on it.

    mirrors/<hash of the URI>/<name>/
      .mirror.json   which URI this is, and the mirror's own ID
      .index.json    what was fetched or published: name -> stamp in the store, size and time here
      …              the files

What is written here is seen by others once it is published. `pull` makes the folder what the store has.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.files import write_whole
from serving.storage.node_cache import RUNS, VIEWS, default_cache_dir, mirror_path
from serving.storage.remote import Remote, Stamp

REGISTRIES = "registries"
"""Mirrors of registries: they hold small files only, and stay."""
_MARK, _INDEX, _LOCK = ".mirror.json", ".index.json", ".lock"
_OWN = (_MARK, _INDEX, _LOCK)
_index_lock = threading.Lock()
_let_go: set[Path] = set()
"""Mirrors whose folder in the store has another owner by now."""

Row = list[int | float]
"""Bytes and time of change, of a file or of an object."""


@dataclass(frozen=True)
class Origin:
    """What a mirror is the mirror of."""

    remote: Remote
    root: Path
    id: str

    def at(self, path: Path) -> tuple[Remote, str]:
        """The object that a file of the mirror is, and its name in the folder."""
        name = path.relative_to(self.root).as_posix()
        return (self.remote if name == "." else self.remote / name), name


def open_mirror(uri: str, kind: str = RUNS) -> Path:
    """The mirror of a folder; made empty where there was none."""
    root = mirror_path(uri, kind)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / _MARK).exists():
        write_whole(root / _MARK, json.dumps({"uri": uri.rstrip("/"), "id": uuid.uuid4().hex}).encode())
    os.utime(root.parent)
    return root


def origin(path: Path) -> Origin | None:
    """Of a path within a mirror; None for any other."""
    home = default_cache_dir().resolve()
    if not any(path.is_relative_to(home / kind) for kind in (RUNS, VIEWS, REGISTRIES)):
        return None
    for root in (path, *path.parents):
        if (root / _MARK).is_file():
            mark = json.loads((root / _MARK).read_bytes())
            return Origin(Remote(mark["uri"]), root, mark["id"])
    return None


def shared(path: Path) -> str:
    """What other nodes are told in place of the path: its URI; a path outside of mirrors as it is."""
    found = origin(path)
    return str(path) if found is None else found.at(path)[0].uri


def let_go(root: Path) -> None:
    """From now on nothing that happens in the mirror reaches the store."""
    _let_go.add(root)


def take_hold(root: Path) -> None:
    """The folder in the store is this process's again."""
    _let_go.discard(root)


def publish(path: Path) -> None:
    """Puts a file of a mirror into the store, where it appears whole, unless it is there already."""
    if (found := origin(path)) is None or found.root in _let_go:
        return
    remote, name = found.at(path)
    row = _read_index(found.root).get(name)
    if row is None or row[1] != _local_row(path):
        remote.upload(path)
        _note(found.root, name, remote.stamp())


def put(path: Path, data: bytes) -> None:
    """Writes a small file, into the store first where it is one of a mirror.

    Others of this node may make the mirror what the store has at any moment: what goes into the store is
    never taken from there.
    """
    if (found := origin(path)) is not None and found.root not in _let_go:
        found.at(path)[0].write(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def discard(path: Path) -> None:
    """Removes a file or folder, from the store too."""
    if (found := origin(path)) is not None and found.root not in _let_go:
        remote, name = found.at(path)
        remote.remove()
        with _index_lock:
            index = _read_index(found.root)
            gone = [each for each in index if each == name or each.startswith(f"{name}/")]
            _write_index(found.root, {each: index[each] for each in index if each not in gone})
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fetched(path: Path) -> Path:
    """The path; a file of a mirror that is not here yet is fetched first, where the store has it."""
    if not path.exists() and (found := origin(path)) is not None:
        remote, name = found.at(path)
        if (stamp := remote.stamp()) is not None:
            remote.download(path)
            _note(found.root, name, stamp)
    return path


def fetched_folder(path: Path) -> Path:
    """The same for a folder with all that is in it."""
    if (found := origin(path)) is not None:
        for name in found.at(path)[0].listing():
            fetched(path / name)
    return path


def renewed(path: Path) -> Path:
    """The path; a small file of a mirror is made what the store has now."""
    if (found := origin(path)) is None:
        return path
    try:
        data = found.at(path)[0].read()
    except FileNotFoundError:
        path.unlink(missing_ok=True)
        return path
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    return path


def pull(root: Path, *, skip: Callable[[str], bool] = lambda _: False) -> None:
    """Makes a mirror what the store has, whatever was here; for the one process that works on it.

    `skip`: names that stay as they are. Nothing for a folder that is no mirror.
    """
    if (found := origin(root)) is None:
        return
    there = {name: stamp for name, stamp in found.remote.listing().items() if not skip(name)}
    for file in [file for file in root.rglob("*") if file.is_file()]:
        name = file.relative_to(root).as_posix()
        if name not in (*_OWN, *there) and not skip(name):
            file.unlink()
    index = _read_index(root)
    for name, stamp in there.items():
        if name not in index or index[name] != [_remote_row(stamp), _local_row(root / name)]:
            (found.remote / name).download(root / name)
            _note(root, name, stamp)


def _note(root: Path, name: str, stamp: Stamp | None) -> None:
    """That the file here and the object there are one."""
    with _index_lock:
        row = [_remote_row(stamp), _local_row(root / name)]
        _write_index(root, _read_index(root) | {name: row})


def _remote_row(stamp: Stamp | None) -> Row | None:
    return None if stamp is None else [stamp.num_bytes, stamp.modified_s]


def _local_row(path: Path) -> Row | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _read_index(root: Path) -> dict[str, list[Row | None]]:
    try:
        rows: dict[str, list[Row | None]] = json.loads((root / _INDEX).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return rows


def _write_index(root: Path, index: dict[str, list[Row | None]]) -> None:
    write_whole(root / _INDEX, json.dumps(index).encode())
