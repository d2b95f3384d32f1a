"""What the engines of a stage took to write answers: time, cores, memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_jobs.runs import RunFolder

SPENT = "answers/{model}/spent.json"


@dataclass(frozen=True)
class Spent:
    """Of one attempt; rows that an earlier one had finished do not count."""

    seconds: float
    """From when the engines were asked for, their start included."""
    engines: int
    cores: int
    """Of one engine."""
    answer_tokens: int
    memory_bytes: int | None
    """Most resident memory of an engine's process, the model's file included; None where it is not known."""

    @property
    def tokens_per_s(self) -> float:
        return self.answer_tokens / self.seconds

    @property
    def tokens_per_s_and_core(self) -> float:
        return self.tokens_per_s / (self.engines * self.cores)


def resident_bytes() -> int:
    """Memory that this process holds now, mapped files included; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(sizes[0]) * 1024 if sizes else 0


def keep(folder: RunFolder, model: str, spent: Spent | None) -> None:
    """Writes down the attempt that wrote most: the end of an interrupted one says little of the rate."""
    known = read(folder, model)
    if spent is not None and (known is None or spent.answer_tokens > known.answer_tokens):
        folder.write_json(SPENT.format(model=model), asdict(spent))


def read(folder: RunFolder, model: str) -> Spent | None:
    """What was written down; None for runs of before, and those whose rows were all there already."""
    path = SPENT.format(model=model)
    if not folder.path(path).is_file():
        return None
    values: Mapping[str, Any] = folder.read_json(path)
    return Spent(**values)
