"""The models that can be asked for by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from serving.calls import ModelCard
from serving.registry import Champion, Registry


class UnknownModel(LookupError):
    """No model has this name."""


@dataclass(frozen=True)
class Entry:
    """A model of the registry under one of its names."""

    name: str
    model: Path
    sha256: str
    run: str
    decided_at: str


def entries(registry: Registry) -> list[Entry]:
    """`champion`, `base` where it is known, then every champion as run@hash, newest first."""
    history = _history(registry)
    found = [_entry("champion", history[0])] if history else []
    if history and (base := history[0].base) is not None:
        champion = history[0]
        found.append(Entry("base", base.model, base.sha256, champion.run, champion.decided_at))
    for each in history:
        entry = _entry(f"{each.run}@{each.sha256[:8]}", each)
        if all(entry.name != other.name for other in found):
            found.append(entry)
    return found


def find(registry: Registry, name: str) -> Entry:
    """Raises UnknownModel."""
    for entry in entries(registry):
        if name == entry.name:
            return entry
    raise UnknownModel(name)


def cards(registry: Registry) -> list[ModelCard]:
    return [ModelCard(e.name, e.sha256, e.run, _seconds(e.decided_at)) for e in entries(registry)]


def _entry(name: str, champion: Champion) -> Entry:
    return Entry(name, champion.model, champion.sha256, champion.run, champion.decided_at)


_cache: dict[Path, tuple[tuple[int, int, int], list[Champion]]] = {}


def _history(registry: Registry) -> list[Champion]:
    """The registry's history, read again only when champion.json has changed."""
    try:
        found = os.stat(registry.file)
    except OSError:
        return []
    stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
    if registry.file not in _cache or _cache[registry.file][0] != stamp:
        _cache[registry.file] = (stamp, registry.history())
    return _cache[registry.file][1]


def _seconds(iso: str) -> int:
    try:
        return int(datetime.fromisoformat(iso).timestamp())
    except ValueError:
        return 0
