"""The models that can be asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from serving.calls import ModelCard
from serving.champion import Champion


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


def champion_name(champion: Champion) -> str:
    """What replies call a champion: run and hash, so that two champions are never mixed up."""
    return f"{champion.run}@{champion.sha256[:8]}"


def entries(history: Sequence[Champion]) -> list[Entry]:
    """`champion`, `base` where it is known, then every champion as run@hash, newest first."""
    found = [_entry("champion", history[0])] if history else []
    if history and (base := history[0].base) is not None:
        champion = history[0]
        found.append(Entry("base", base.model, base.sha256, champion.run, champion.decided_at))
    for each in history:
        entry = _entry(champion_name(each), each)
        if all(entry.name != other.name for other in found):
            found.append(entry)
    return found


def find(history: Sequence[Champion], name: str) -> Entry:
    """Raises UnknownModel."""
    for entry in entries(history):
        if name == entry.name:
            return entry
    raise UnknownModel(name)


def cards(history: Sequence[Champion]) -> list[ModelCard]:
    return [ModelCard(e.name, e.sha256, e.run, _seconds(e.decided_at)) for e in entries(history)]


def _entry(name: str, champion: Champion) -> Entry:
    return Entry(name, champion.model, champion.sha256, champion.run, champion.decided_at)


def _seconds(iso: str) -> int:
    try:
        return int(datetime.fromisoformat(iso).timestamp())
    except ValueError:
        return 0
