"""Judged once, ever: judgements by the hash of everything that decides them.

The key covers the judge's file and how it is run, the text it reads (which holds metric, rubric, prompt,
reference and answer) and how it is asked, so an entry is never out of date and is only ever added. One sqlite
file, shared by the processes of a machine.
"""

import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from ray_jobs.errors import DataError
from ray_jobs.records import Judgement

_BUSY_TIMEOUT_S = 60.0
_MAX_VARIABLES = 500  # sqlite's oldest limit is 999

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, judgement TEXT NOT NULL) WITHOUT ROWID"
)


def default_cache_path() -> Path:
    """Where judgements are kept between runs; the environment variable JUDGEMENT_CACHE names another file."""
    if chosen := os.environ.get("JUDGEMENT_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "orpo-on-ray" / "judgements.sqlite"


def judgement_key(*parts: str | int | float | None) -> str:
    """sha256 over the parts, told apart by type and length."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


class JudgementCache:
    """Judgements by key. Safe for many processes at once; use one object per thread.

    Raises DataError that names the file when it cannot be opened or is not a cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            _set_up(self._db)
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"{path}: cannot be used as a judgement cache (judge.cache: false goes without): {error}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def get(self, keys: Iterable[str]) -> dict[str, Judgement]:
        """The judgements that are there, by key."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Judgement] = {}
        for start in range(0, len(wanted), _MAX_VARIABLES):
            part = wanted[start : start + _MAX_VARIABLES]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT key, judgement FROM judgements WHERE key IN ({marks})", part)
            found.update((key, Judgement(**json.loads(text))) for key, text in rows)
        return found

    def put(self, key: str, judgement: Judgement) -> None:
        """Keeps a judgement; the first one under a key stays."""
        text = json.dumps(asdict(judgement), ensure_ascii=True)
        self._db.execute("INSERT OR IGNORE INTO judgements VALUES (?, ?)", (key, text))

    def __len__(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM judgements").fetchone()
        return int(count)


def _set_up(db: sqlite3.Connection) -> None:
    """Makes the table and switches to write-ahead logging; sqlite does not wait for the latter, so this
    does."""
    deadline_s = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_SCHEMA)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
