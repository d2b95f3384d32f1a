"""The processes of a running pipeline, by what they do."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

KINDS = {
    "ray::RayTrainWorker": "train worker",
    "ray::TrainController": "train controller",
    "ray::ImplicitFunc": "trial",
    "ray::run_trial": "trial",
    "ray::MapWorker": "engine",
    "ray::Ledger": "ledger",
    "raylet": "raylet",
}
WEIGHTS = {"driver": 3, "raylet": 1}
"""How much likelier than another single process; the others have 4."""


@dataclass(frozen=True)
class Victim:
    kind: str
    pid: int


def kind_of(process: psutil.Process) -> str | None:
    try:
        line = process.cmdline()
        title = (line[0] if line else process.name()).rsplit("/", 1)[-1]
    except psutil.Error:
        return None
    return next((kind for start, kind in KINDS.items() if title.startswith(start)), None)


def victims(driver: int) -> list[Victim]:
    """The driver and those of its descendants that do a part of the work."""
    try:
        children = psutil.Process(driver).children(recursive=True)
    except psutil.Error:
        return []
    found = [(kind_of(child), child.pid) for child in children]
    return [Victim("driver", driver), *(Victim(kind, pid) for kind, pid in found if kind)]


def choose(candidates: Sequence[Victim], draw: random.Random) -> Victim:
    return draw.choices(candidates, [WEIGHTS.get(victim.kind, 4) for victim in candidates])[0]
