"""champion.json: one decision, and the ones before it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.storage.remote import is_uri

_MAX_FILE_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RegistryError(Exception):
    """The registry cannot do what was asked; one line naming the file and the reason."""


@dataclass(frozen=True)
class BaseModel:
    """The model that a champion was tuned from."""

    model: Path
    sha256: str


@dataclass(frozen=True)
class Champion:
    """One decision: this model is served, because this run's report says so."""

    model: Path
    sha256: str
    run: str
    decided_at: str
    """ISO 8601, UTC."""
    report: Path | str
    """A file, or the URI of one in an object store."""
    base: BaseModel | None = None
    previous: Champion | None = None
    restored_at: str | None = None
    """When it was put back in place of one that came after it, as `decided_at`; None: it was not."""


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def to_bytes(champion: Champion, root: Path) -> bytes:
    """The file's content; paths inside `root` are written relative to it."""
    return (json.dumps(_to_json(champion, root), indent=2, ensure_ascii=False) + "\n").encode()


def _to_json(champion: Champion, root: Path) -> dict[str, Any]:
    base, previous = champion.base, champion.previous
    restored = {} if champion.restored_at is None else {"restored_at": champion.restored_at}
    return {
        "model": _relative(champion.model, root),
        "sha256": champion.sha256,
        "run": champion.run,
        "decided_at": champion.decided_at,
        **restored,
        "report": champion.report if isinstance(champion.report, str) else _relative(champion.report, root),
        "base": None if base is None else {"model": _relative(base.model, root), "sha256": base.sha256},
        "previous": None if previous is None else _to_json(previous, root),
    }


def _relative(path: Path, root: Path) -> str:
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return str(path)


def from_bytes(data: bytes, root: Path, file: Path) -> Champion:
    """The champion that a file holds. Raises RegistryError naming the file."""
    try:
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError("too large")
        return _from_json(json.loads(data), root)
    except RecursionError as error:
        raise RegistryError(f"{file}: not a champion file: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise RegistryError(f"{file}: not a champion file: {error}") from error


def _from_json(row: object, root: Path) -> Champion:
    if not isinstance(row, dict):
        raise ValueError("an object is expected")
    base, previous = row.get("base"), row.get("previous")
    return Champion(
        model=root.resolve() / _text(row, "model"),
        sha256=_digest(row),
        run=_text(row, "run"),
        decided_at=_text(row, "decided_at"),
        report=text if is_uri(text := _text(row, "report")) else root.resolve() / text,
        base=None if base is None else _base_from_json(base, root),
        previous=None if previous is None else _from_json(previous, root),
        restored_at=_text(row, "restored_at") if row.get("restored_at") is not None else None,
    )


def _base_from_json(row: object, root: Path) -> BaseModel:
    if not isinstance(row, dict):
        raise ValueError("'base' must be an object")
    return BaseModel(root.resolve() / _text(row, "model"), _digest(row))


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"'{key}' must be a text")
    return value


def _digest(row: dict[str, Any]) -> str:
    value = _text(row, "sha256")
    if not is_sha256(value):
        raise ValueError("'sha256' must be 64 lowercase hex digits")
    return value
