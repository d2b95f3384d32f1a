"""Which models engines of this node have failed with, told to the processes that come after.

    engine-deaths/
      <sha256>.<name>.running   held by a process for as long as it has the model; without a holder: it died
      <sha256>.<name>.died      a process, or several that went at once, died with the model
      <sha256>.<name>.failed    an engine failed, and its process lived to tell

A champion on whose answers a process dies never answers often enough to be judged by its answers: every new
process begins to count anew.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from serving.files import LockTimeout, locked
from serving.storage.node_cache import default_cache_dir

log = logging.getLogger(__name__)

MAX_DEATHS = 2
"""A process may be killed by chance: the second one that dies with a new model is no chance."""
_KEPT_S = 7 * 24 * 3600.0


class EngineDeaths:
    """Of one process, and what those before it have left. Where nothing can be written, nothing is known."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_cache_dir().resolve() / "engine-deaths"
        self._held: dict[str, ExitStack] = {}

    def begin(self, sha256: str) -> None:
        """This process is about to load the model."""
        if sha256 in self._held:
            return
        with suppress(OSError, LockTimeout), ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            marker = self._new(sha256, "running")
            stack.callback(marker.unlink, missing_ok=True)  # once it is let go: Windows keeps what is open
            stack.enter_context(locked(marker, 1.0))
            self._held[sha256] = stack.pop_all()

    def end(self, sha256: str) -> None:
        """It has the model no more, and lives."""
        if (stack := self._held.pop(sha256, None)) is not None:
            with suppress(OSError):
                stack.close()

    def failed(self, sha256: str) -> None:
        """The model's engine has failed in this process, which will end."""
        self._put(sha256, "failed")

    def reason(self, sha256: str, *, since_s: float) -> str | None:
        """Why the model is not to be tried any more; None if nothing speaks against it.

        `since_s`: seconds since 1970; what happened before does not count.
        """
        with suppress(OSError):
            self._bury(sha256)
        if self._count(sha256, "failed", since_s):
            return "its engine failed"
        deaths = self._count(sha256, "died", since_s)
        return f"{deaths} processes died with it on one node" if deaths >= MAX_DEATHS else None

    def _bury(self, sha256: str) -> None:
        """Those who died since this was asked last count once: a machine may have gone down with them all."""
        dead = [marker for marker in self._folder.glob(f"{sha256}.*.running") if _is_dead(marker)]
        for marker in dead:
            marker.unlink(missing_ok=True)
        if dead:
            self._put(sha256, "died")
        for path in self._folder.glob("*.*"):
            if path.suffix in (".died", ".failed") and time.time() - path.stat().st_mtime > _KEPT_S:
                path.unlink(missing_ok=True)

    def _count(self, sha256: str, kind: str, since_s: float) -> int:
        return sum(changed_s >= since_s for changed_s in _times(self._folder, f"{sha256}.*.{kind}"))

    def _put(self, sha256: str, kind: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._new(sha256, kind).touch()
        except OSError as error:
            log.warning("%s: not noted that an engine failed: %s", self._folder, error)

    def _new(self, sha256: str, kind: str) -> Path:
        return self._folder / f"{sha256}.{os.getpid()}-{uuid.uuid4().hex[:8]}.{kind}"


def _is_dead(marker: Path) -> bool:
    try:
        with locked(marker, 0.0):
            return True
    except (LockTimeout, OSError):
        return False


def _times(folder: Path, pattern: str) -> Iterator[float]:
    for path in folder.glob(pattern):
        with suppress(OSError):
            yield path.stat().st_mtime
