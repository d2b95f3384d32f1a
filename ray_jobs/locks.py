"""One run, one owner."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_jobs.errors import RunBusy
from ray_jobs.runs import dump_json, now, write_whole

HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A heartbeat this old is that of a dead owner, where the system has no file locks."""


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Holds the run folder for this process, and says so in `owner.json` with a heartbeat.

    The lock is the kernel's, which lets go when the process dies (NFS included); where the system has none,
    a heartbeat of less than a minute ago counts. Raises RunBusy, naming the owner, when another process
    holds the folder.
    """
    with _locked(root):
        ended = threading.Event()
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": now()}
        beats = threading.Thread(target=_beat, args=(root, owner, ended), daemon=True)
        _write(root, owner)
        beats.start()
        try:
            yield
        finally:
            ended.set()
            beats.join()
            _owner_file(root).unlink(missing_ok=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        if _age_s(root) < STALE_S:
            raise _busy(root) from None
        yield
        return
    with (root / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _busy(root) from error
        yield


def _busy(root: Path) -> RunBusy:
    try:
        owner = json.loads(_owner_file(root).read_bytes())
    except (OSError, ValueError):
        owner = {}
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'unknown')}"
    since, seen = owner.get("since", "unknown"), owner.get("seen", "unknown")
    return RunBusy(f"{root}: {who} works on this run since {since}, last seen {seen}")


def _beat(root: Path, owner: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        _write(root, owner)


def _write(root: Path, owner: dict[str, Any]) -> None:
    """A heartbeat that cannot be written, on a full disk for one, is no reason to stop."""
    try:
        write_whole(_owner_file(root), dump_json(owner | {"seen": now()}))
    except OSError:
        return


def _age_s(root: Path) -> float:
    try:
        return time.time() - _owner_file(root).stat().st_mtime
    except OSError:
        return float("inf")


def _owner_file(root: Path) -> Path:
    return root / "owner.json"
