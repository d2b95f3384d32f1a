"""Which model is served: the champion, the ones before it, and the base they were tuned from.

    registry/
      champion.json                 the decision; written last, whole or not at all
      models/<sha256>/model.gguf    every model that a decision names, a copy of its own
      models/<sha256>/expected.json what the model said when it was promoted
      rollbacks.jsonl               what was taken back, when and why

Paths in champion.json are relative to the registry where they lie inside it, so that the folder can be moved.
In an object store it is the same: this node then has a mirror of the small files, and fetches a model when it
is to be loaded.
"""

from __future__ import annotations

import json
import logging
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import kept_models
from serving.champion import BaseModel, Champion, RegistryError, from_bytes, to_bytes
from serving.files import LockTimeout, locked
from serving.kept_models import EXPECTED_FILE, keep, model_here, verify
from serving.shadow_files import rows_of
from serving.storage.claims import STALE_S, Claimed, claimed
from serving.storage.mirror import (
    REGISTRIES,
    discard,
    open_mirror,
    origin,
    publish,
    put,
    renewed,
    shared,
)
from serving.storage.remote import StorageError, folder_path, is_uri

__all__ = ["BaseModel", "Champion", "NothingToTakeBack", "Registry", "RegistryError"]

log = logging.getLogger(__name__)

MAX_PREVIOUS = 16
"""How many earlier champions stay in the registry, for rollback and by name."""

_FILE = "champion.json"
_ROLLBACKS = "rollbacks.jsonl"


class NothingToTakeBack(RegistryError):
    """Another champion has taken over, or there is none before this one."""


class Registry:
    """A folder with one champion. Any number of readers, one writer at a time."""

    def __init__(self, root: Path, *, lock_timeout_s: float = 60.0) -> None:
        self.root = root
        self._lock_timeout_s = lock_timeout_s

    @classmethod
    def at(cls, address: str) -> Registry:
        """The registry in a folder or at a URI. Raises RegistryError when a store does not answer."""
        if not is_uri(address):
            return cls(folder_path(address))
        registry = cls(open_mirror(address, REGISTRIES))
        registry.renew()
        return registry

    @property
    def address(self) -> str:
        """Where the registry is, as people are told."""
        return shared(self.root)

    def renew(self) -> None:
        """Of a registry in an object store: sees what was decided elsewhere. Raises RegistryError."""
        try:
            renewed(self.file)
        except StorageError as error:
            raise RegistryError(str(error)) from error
        except OSError as error:  # of this node's own disk
            raise RegistryError(f"{self.file}: {error.strerror or error}") from error

    @property
    def file(self) -> Path:
        """champion.json: whoever watches this file sees every change."""
        return self.root / _FILE

    def champion(self) -> Champion | None:
        """The model to serve; None before the first decision. Raises RegistryError on a file that is none."""
        try:
            data = self.file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{self.file}: cannot be read: {error.strerror}") from error
        return from_bytes(data, self.root, self.file)

    def holds(self, champion: Champion) -> bool:
        """Whether the champion's file is there, whatever is in it. Raises RegistryError."""
        return kept_models.is_there(champion.model)

    def history(self) -> list[Champion]:
        """The champion and the ones before it, newest first."""
        return list(_chain(self.champion()))

    def promote(
        self,
        model_path: Path,
        *,
        sha256: str,
        run: str,
        report: Path,
        decided_at: str | None = None,
        base: BaseModel | None = None,
        expected: bytes | None = None,
    ) -> Champion:
        """Copy the model into the registry and make it the champion.

        `expected`: what `serving.expectations.record` returned; whoever serves the model compares.
        Raises RegistryError if the file's bytes are not those of `sha256`, or nothing could be written; the
        old champion then is what it was.
        """
        with self._writing() as is_ours:
            old = self.champion()
            champion = Champion(
                model=keep(self.root / "models", model_path, sha256),
                sha256=sha256,
                run=run,
                decided_at=decided_at or datetime.now(UTC).isoformat(timespec="seconds"),
                report=report.resolve() if origin(report) is None else shared(report),
                base=base and BaseModel(keep(self.root / "models", base.model, base.sha256), base.sha256),
                previous=old.previous if old is not None and old.sha256 == sha256 else old,
            )
            if expected is not None:
                put(champion.model.with_name(EXPECTED_FILE), expected)
            self._publish(_shorten(champion, MAX_PREVIOUS), is_ours)
        log.info("champion is %s of run %s", sha256[:12], run)
        return champion

    def rollback(self, *, only_from: str | None = None, reason: str = "by hand") -> Champion:
        """Make the previous champion the champion again.

        `only_from`: the sha256 that the champion must have, for callers who may come late. Raises
        NothingToTakeBack if there is no previous champion, or another one has taken over, RegistryError if
        the previous one is not sound, or nothing could be written.
        """
        with self._writing() as is_ours:
            current = self.champion()
            if current is not None and only_from not in (None, current.sha256):
                raise NothingToTakeBack(f"{self.file}: the champion is no longer {only_from:.12}")
            if current is None or current.previous is None:
                raise NothingToTakeBack(f"{self.file}: there is no previous champion to go back to")
            verify(model_here(current.previous.model, current.previous.sha256), current.previous.sha256)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            restored = replace(current.previous, restored_at=now)
            self._publish(restored, is_ours)
            self._note({"at": now, "from": current.sha256, "run": current.run, "reason": reason})
        log.info("rolled back from %s to %s", current.sha256[:12], restored.sha256[:12])
        return restored

    def rollbacks(self) -> list[dict[str, str]]:
        """What was taken back, when and why; newest last. A line that is not whole is left out."""
        try:
            return list(_whole_rows(renewed(self.root / _ROLLBACKS).read_bytes()))
        except FileNotFoundError:
            return []
        except OSError as error:
            log.warning("%s: cannot be read: %s", self.root / _ROLLBACKS, error.strerror or error)
            return []

    def write_problem(self) -> str | None:
        """Why nothing can be decided from this process; None if it can, or nothing was decided yet."""
        if not self.root.is_dir():
            return None
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            if (store := origin(self.root)) is None:
                (self.root / probe).touch()
                (self.root / probe).unlink()
            else:
                (store.remote / "probes" / probe).write(b"")
                (store.remote / "probes" / probe).remove()
        except OSError as error:
            return f"{self.address}: cannot be written to: {error.strerror or error}"
        return None

    def shadow_rows(self) -> list[dict[str, Any]]:
        """What shadow traffic has stored: see `serving.shadow.row_of`; oldest first."""
        folder = self.root / "shadow"
        if (store := origin(folder)) is not None:
            for name, stamp in store.at(folder)[0].listing().items():
                path = folder / name
                if not path.exists() or path.stat().st_size < stamp.num_bytes:  # these files only grow
                    renewed(path)
        return rows_of(self.root)

    def send_rows(self) -> None:
        """Of a registry in an object store: puts there what this node's shadow traffic has stored."""
        for path in (self.root / "shadow").glob("*.jsonl"):
            publish(path)

    def _note(self, row: dict[str, str]) -> None:
        """Of what is decided already: if it cannot be noted, that changes nothing."""
        file = self.root / _ROLLBACKS
        try:
            before = data if (data := _read(renewed(file))).endswith(b"\n") or not data else data + b"\n"
            put(file, before + json.dumps(row).encode() + b"\n")
        except OSError as error:
            log.warning("%s: the reason is not noted: %s", file, error.strerror or error)

    @contextmanager
    def _writing(self) -> Iterator[Callable[[], bool]]:
        """Gives what tells whether the registry is still this process's to write to."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root / ".lock", self._lock_timeout_s), self._claimed() as is_ours:
                yield is_ours
        except LockTimeout as error:
            raise RegistryError(str(error)) from error
        except OSError as error:
            raise RegistryError(f"{error.filename or self.root}: {error.strerror or error}") from error

    @contextmanager
    def _claimed(self) -> Iterator[Callable[[], bool]]:
        """For the writers of other nodes, who cannot see the lock."""
        if (store := origin(self.root)) is None:
            yield lambda: True
            return
        lost, owner = threading.Event(), {"host": platform.node()}
        last_s = time.monotonic() + max(self._lock_timeout_s, 2 * STALE_S)
        with ExitStack() as held:
            while True:
                try:
                    stands = held.enter_context(claimed(store.remote, store.id, owner, lost.set))
                    break
                except Claimed as error:
                    if time.monotonic() > last_s:
                        raise RegistryError(f"{self.address}: {error}: {dict(error.owner)}") from error
                    time.sleep(0.5)
            renewed(self.file)
            yield lambda: stands() and not lost.is_set()

    def _publish(self, champion: Champion, is_ours: Callable[[], bool]) -> None:
        """The decision; what comes after it is no reason to say that it failed."""
        if not is_ours():  # a machine that slept, a network that was gone: another may have decided since
            raise RegistryError(f"{self.address}: another process has taken over the registry")
        put(self.file, to_bytes(champion, self.root))
        try:
            self._prune(champion)
        except OSError as error:
            log.warning("%s: models that nobody needs stay: %s", self.address, error.strerror or error)

    def _prune(self, champion: Champion) -> None:
        """Delete the oldest models that no decision names; a replica that has one open keeps its bytes."""
        named = {name for each in _chain(champion) for name in (each.sha256, each.base and each.base.sha256)}
        changed_s = kept_models.changed_s(self.root / "models")
        kept = sorted(changed_s, key=lambda sha256: changed_s[sha256], reverse=True)
        for sha256 in [each for each in kept if each not in named][MAX_PREVIOUS:]:
            discard(self.root / "models" / sha256)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _whole_rows(data: bytes) -> Iterator[dict[str, str]]:
    for line in data.splitlines():
        try:
            row = json.loads(line)
            yield {name: str(row[name]) for name in ("at", "from", "run", "reason")}
        except (ValueError, KeyError, TypeError):
            log.warning("%s: a line is not whole", _ROLLBACKS)


def _chain(champion: Champion | None) -> Iterator[Champion]:
    while champion is not None:
        yield champion
        champion = champion.previous


def _shorten(champion: Champion, num_previous: int) -> Champion:
    """The champion with at most `num_previous` before it."""
    if champion.previous is None:
        return champion
    return replace(champion, previous=_shorten(champion.previous, num_previous - 1) if num_previous else None)
