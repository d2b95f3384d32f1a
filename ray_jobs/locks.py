"""One run, one owner."""

import _thread
import errno
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from ray_jobs.errors import ConfigError, RunBusy
from ray_jobs.runs import dump_json, in_store_only, now, write_whole
from serving.storage.claims import Claimed, claimed
from serving.storage.mirror import Origin, let_go, origin, pull, take_hold
from serving.storage.remote import StorageError

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A heartbeat this old is that of a dead owner, where the system has no file locks."""
POLL_S = 2.0
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What flock answers on a file system without locks, such as Lustre as it is mounted by default."""


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Holds the run folder for this process, and says so in `owner.json` with a heartbeat.

    The lock is the kernel's, which lets go when the process dies (NFS included); where the system or the file
    system has none, a heartbeat of less than a minute ago counts. A run in an object store is claimed there
    too, for the other machines (serving.storage.claims), and its mirror brought up to date. Raises RunBusy,
    naming the owner, when another process holds the folder, ConfigError when it cannot be written to.
    """
    with _locked(root), _claimed(root):
        ended = threading.Event()
        owner = _self()
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
        file = (root / ".lock").open("a+")
    except OSError as error:
        raise ConfigError(f"{root}: cannot be written to: {error.strerror}") from error
    with file:
        if not _lock(file, root) and _age_s(root) < STALE_S:
            raise _busy(root, _owner(root))
        yield


def _lock(file: IO[str], root: Path) -> bool:
    """Takes the kernel's lock; false where the system or the file system has none. Raises RunBusy."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise _busy(root, _owner(root)) from error
    return True


@contextmanager
def _claimed(root: Path) -> Iterator[None]:
    if (store := origin(root)) is None:
        yield
        return
    lost = threading.Event()

    def stop() -> None:
        lost.set()
        let_go(store.root)
        _interrupt_main()

    try:
        with _interruptible(), ExitStack() as held:
            try:
                held.enter_context(_claim(store, stop))
                take_hold(store.root)
                pull(root, skip=in_store_only)
            except StorageError as error:
                raise ConfigError(f"storage: {error}") from error
            yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise RunBusy(f"{store.remote.uri}: another process has taken over this run") from None


@contextmanager
def _claim(store: Origin, on_lost: Callable[[], None]) -> Iterator[None]:
    """Waits as long as another owner shows no sign of life: it may be alive, or have died a moment ago."""
    first: dict[str, Any] | None = None
    with ExitStack() as held:
        while True:
            try:
                # The kernel's lock is held: whoever left a claim under the mirror's ID is dead.
                held.enter_context(claimed(store.remote, store.id, _self(), on_lost=on_lost))
                break
            except Claimed as error:
                owner = dict(error.owner)
            if first is None:
                log.info("lock     %s; is it alive?", _busy(store.remote.uri, owner))
            elif owner != first or not owner:
                raise _busy(store.remote.uri, owner)
            first = owner
            time.sleep(POLL_S)
        yield


_INTERRUPT = getattr(signal, "SIGUSR2", None)
"""Not SIGINT: a shell starts what it puts in the background with that one ignored."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, `_interrupt_main` works; only the main thread can have it so."""
    if _INTERRUPT is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(_INTERRUPT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(_INTERRUPT, before)


def _interrupt_main() -> None:
    """As Ctrl-C would, also while the main thread waits."""
    if _INTERRUPT is not None and signal.getsignal(_INTERRUPT) is signal.default_int_handler:
        signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)
    else:
        _thread.interrupt_main()


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now()}


def _owner(root: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_owner_file(root).read_bytes()))
    except (OSError, ValueError):
        return {}


def _busy(root: Path | str, owner: Mapping[str, Any]) -> RunBusy:
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
