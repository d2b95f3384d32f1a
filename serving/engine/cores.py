"""Exclusive cores: nobody else's engine on this node computes on a core that is leased.

A lease is a kernel-held lock on one file per core, so it ends with its process, however that ends.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from serving.engine.errors import CoresUnavailable
from serving.engine.topology import Core, usable_cores

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_first_thread = threading.Lock()


class CoreLease:
    """Cores that belong to the holder until `release`. A context manager."""

    def __init__(self, cpus: tuple[int, ...], files: Sequence[int]) -> None:
        self.cpus = cpus
        """Processor numbers, one per leased physical core; empty: not pinned."""
        self._files = list(files)
        _open_leases.add(self)

    @classmethod
    def acquire(cls, num_cores: int, *, wait_s: float = 30.0, folder: Path | None = None) -> CoreLease:
        """Lease `num_cores` physical cores, of one memory node where one has enough free.

        Raises CoresUnavailable if this process may use fewer at all, or if they are not free within `wait_s`.
        Where the platform has no core affinity, the lease is empty and a log line says so.
        """
        cores = usable_cores()
        if cores is None or fcntl is None:
            logger.warning("this platform cannot pin threads to cores: the engine runs unpinned")
            return cls((), ())
        if num_cores > len(cores):
            raise CoresUnavailable(f"{num_cores} cores asked for, but this process may use only {len(cores)}")
        folder = folder or _lock_folder()
        until_s = time.monotonic() + wait_s
        while True:
            lease = cls._try_acquire(num_cores, cores, folder)
            if lease is not None:
                return lease
            if time.monotonic() >= until_s:
                raise CoresUnavailable(
                    f"{num_cores} of {len(cores)} cores asked for, but other engines hold too many "
                    f"(waited {wait_s:g} s; locks in {folder})"
                )
            time.sleep(_POLL_S)

    @classmethod
    def unpinned(cls) -> CoreLease:
        """A lease of nothing, for engines that shall not be pinned."""
        return cls((), ())

    @classmethod
    def _try_acquire(cls, num_cores: int, cores: list[Core], folder: Path) -> CoreLease | None:
        choosing = _open_lock(folder / "choosing.lock")
        try:
            fcntl.flock(
                choosing, fcntl.LOCK_EX
            )  # one at a time, or two could each hold half of what they need
            held = {core: file for core in cores if (file := _try_lock(folder / f"core-{core.cpu}.lock"))}
            chosen = _choose(list(held), num_cores)
            for core in set(held) - set(chosen):
                os.close(held[core])
            return cls(tuple(c.cpu for c in chosen), [held[c] for c in chosen]) if chosen else None
        finally:
            os.close(choosing)

    def __enter__(self) -> CoreLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the cores back; further calls do nothing."""
        _open_leases.discard(self)
        with contextlib.suppress(IndexError):  # another thread may be at it, too
            while True:
                os.close(self._files.pop())


def pin_this_thread(cpus: Sequence[int]) -> None:
    """Keep the calling thread, and the threads that it starts from now on, on these processors."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


@contextmanager
def first_thread_on(cpus: Sequence[int]) -> Iterator[None]:
    """Keep the process's first thread on these processors meanwhile, where nobody else does so: libraries
    that start threads of their own may ask where that one is allowed to be."""
    if not cpus or not hasattr(os, "sched_setaffinity"):
        yield
        return
    with _first_thread:
        before = os.sched_getaffinity(os.getpid())
        os.sched_setaffinity(os.getpid(), cpus)
        try:
            yield
        finally:
            os.sched_setaffinity(os.getpid(), before)


def lease_holders(folder: Path | None = None) -> set[int]:
    """The processes that hold cores on this node, as far as this one may see them. Source: proc_locks(5)."""
    folder = folder or _lock_folder()
    inodes = {path.stat().st_ino for path in folder.glob("core-*.lock")}
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    fields = [line.split() for line in locks if " FLOCK " in line and "->" not in line]
    return {int(pid) for *_, pid, where, _, _ in fields if int(where.rsplit(":", 1)[1]) in inodes} - {0, -1}


def _choose(free: list[Core], num_cores: int) -> list[Core]:
    """Cores of the fullest memory node that has enough, else of as few nodes as possible; [] if too few are
    free."""
    if len(free) < num_cores:
        return []
    by_node: dict[int, list[Core]] = defaultdict(list)
    for core in free:
        by_node[core.node].append(core)
    enough = [cores for cores in by_node.values() if len(cores) >= num_cores]
    if enough:
        return min(enough, key=len)[:num_cores]
    widest_first = sorted(by_node.values(), key=len, reverse=True)
    return [core for cores in widest_first for core in cores][:num_cores]


def _lock_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / "serving-engine-cores"
    with contextlib.suppress(FileExistsError):  # another engine made it, maybe another user's
        folder.mkdir(mode=0o1777)
        folder.chmod(0o1777)  # every user's engines on this node see the same locks
    return folder


def _open_lock(path: Path) -> int:
    """A lock needs no write permission, so another user's file will do."""
    mode = 0o644
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, mode)
        with contextlib.suppress(PermissionError):  # another user was faster
            os.fchmod(file, mode)  # whatever this user's umask is
        return file


def _try_lock(path: Path) -> int | None:
    file = _open_lock(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


_open_leases: set[CoreLease] = set()


def _release_all() -> None:
    for lease in list(_open_leases):
        lease.release()


# A process may hang on its way out: a Ray worker's can (ray 2.60, CoreWorkerProcess::HandleAtExit).
atexit.register(_release_all)
if hasattr(os, "register_at_fork"):
    # A forked child shares its parent's locks and would hold the cores after the parent's death.
    os.register_at_fork(after_in_child=_release_all)
