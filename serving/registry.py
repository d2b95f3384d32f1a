"""Which model is served: the champion, the ones before it, and the base they were tuned from.

    registry/
      champion.json                 the decision; written last, whole or not at all
      models/<sha256>/model.gguf    every model that a decision names, a copy of its own
      models/<sha256>/expected.json what the model said when it was promoted
      rollbacks.jsonl               what was taken back, when and why

Paths in champion.json are relative to the registry where they lie inside it, so that the folder can be moved.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.champion import BaseModel, Champion, RegistryError, from_bytes, is_sha256, to_bytes
from serving.files import LockTimeout, copy_hashed, locked, sha256_of, sync_folder, write_whole
from serving.shadow_files import rows_of

__all__ = ["BaseModel", "Champion", "Registry", "RegistryError"]

log = logging.getLogger(__name__)

MAX_PREVIOUS = 16
"""How many earlier champions stay in the registry, for rollback and by name."""

EXPECTED_FILE = "expected.json"
"""Beside a model: what it said when it was promoted."""

_FILE = "champion.json"
_ROLLBACKS = "rollbacks.jsonl"


class Registry:
    """A folder with one champion. Any number of readers, one writer at a time."""

    def __init__(self, root: Path, *, lock_timeout_s: float = 60.0) -> None:
        self.root = root
        self._lock_timeout_s = lock_timeout_s

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
        with self._writing():
            old = self.champion()
            champion = Champion(
                model=self._keep(model_path, sha256),
                sha256=sha256,
                run=run,
                decided_at=decided_at or datetime.now(UTC).isoformat(timespec="seconds"),
                report=report.resolve(),
                base=base and BaseModel(self._keep(base.model, base.sha256), base.sha256),
                previous=old.previous if old is not None and old.sha256 == sha256 else old,
            )
            if expected is not None:
                write_whole(champion.model.with_name(EXPECTED_FILE), expected)
            self._publish(_shorten(champion, MAX_PREVIOUS))
        log.info("champion is %s of run %s", sha256[:12], run)
        return champion

    def rollback(self, *, only_from: str | None = None, reason: str = "by hand") -> Champion:
        """Make the previous champion the champion again.

        `only_from`: the sha256 that the champion must have, for callers who may come late. Raises
        RegistryError if there is no sound previous champion, or another one has taken over.
        """
        with self._writing():
            current = self.champion()
            if current is None or current.previous is None:
                raise RegistryError(f"{self.file}: there is no previous champion to go back to")
            if only_from not in (None, current.sha256):
                raise RegistryError(f"{self.file}: the champion is no longer {only_from:.12}")
            _verify(current.previous.model, current.previous.sha256)
            self._publish(current.previous)
            self._note(current, reason)
        log.info("rolled back from %s to %s", current.sha256[:12], current.previous.sha256[:12])
        return current.previous

    def rollbacks(self) -> list[dict[str, str]]:
        """What was taken back, when and why; newest last."""
        try:
            lines = (self.root / _ROLLBACKS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def shadow_rows(self) -> list[dict[str, Any]]:
        """What shadow traffic has stored: see `serving.shadow.row_of`; oldest first."""
        return rows_of(self.root)

    def _note(self, gone: Champion, reason: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"at": at, "from": gone.sha256, "run": gone.run, "reason": reason})
        with (self.root / _ROLLBACKS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root / ".lock", self._lock_timeout_s):
                yield
        except LockTimeout as error:
            raise RegistryError(str(error)) from error
        except OSError as error:
            raise RegistryError(f"{error.filename or self.root}: {error.strerror or error}") from error

    def _publish(self, champion: Champion) -> None:
        write_whole(self.file, to_bytes(champion, self.root))
        self._prune(champion)

    def _prune(self, champion: Champion) -> None:
        """Delete the oldest models that no decision names; a replica that has one open keeps its bytes."""
        named = {name for each in _chain(champion) for name in (each.sha256, each.base and each.base.sha256)}
        kept = sorted((self.root / "models").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for folder in [path for path in kept if path.name not in named][MAX_PREVIOUS:]:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, source: Path, sha256: str) -> Path:
        """A copy under models/<sha256>, verified; a later change of `source` does not reach it."""
        if not is_sha256(sha256):
            raise RegistryError(f"sha256 must be 64 lowercase hex digits, not {sha256[:80]!r}")
        if not source.is_file():
            raise RegistryError(f"{source}: no such model file")
        folder = self.root / "models" / sha256
        model = folder / "model.gguf"
        if model.is_file() and sha256_of(model) == sha256:
            return model.resolve()
        folder.parent.mkdir(exist_ok=True)
        self._copy(source, folder, sha256)
        return model.resolve()

    def _copy(self, source: Path, folder: Path, sha256: str) -> None:
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


def _chain(champion: Champion | None) -> Iterator[Champion]:
    while champion is not None:
        yield champion
        champion = champion.previous


def _shorten(champion: Champion, num_previous: int) -> Champion:
    """The champion with at most `num_previous` before it."""
    if champion.previous is None:
        return champion
    return replace(champion, previous=_shorten(champion.previous, num_previous - 1) if num_previous else None)


def _verify(model: Path, sha256: str) -> None:
    if not model.is_file():
        raise RegistryError(f"{model}: the model file is missing")
    if (found := sha256_of(model)) != sha256:
        raise RegistryError(f"{model}: sha256 is {found[:12]}…, expected {sha256[:12]}…")
