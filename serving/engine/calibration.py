"""What calibration has found for a model on this kind of processor, and how `auto` settings use it."""

from __future__ import annotations

import json
import logging
import os
import platform
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from serving.engine.settings import EngineSettings

logger = logging.getLogger(__name__)

PATH_VARIABLE = "SERVING_ENGINE_CALIBRATION"
"""Environment variable: a calibration file to use instead of the one beside the model."""


NOT_FOR_OPENVINO = ("bf16",)
"""Quantisations that it does not read; with the embedding alone in BF16 it does."""
SIZE_TOLERANCE = 0.01
"""Files of one architecture and quantisation differ by their metadata alone."""


class Trial(BaseModel):
    """One way to run the model, and what it gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["llama_cpp", "openvino"]
    recipe: str
    """The quantisation; `given`: the file as it is."""
    lanes: int
    slots: int
    answer_tokens_per_s: float
    prompt_tokens_per_s: float


class Quality(BaseModel):
    """What a quantisation costs, on a fixed text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    perplexity: float
    greedy_agreement: float
    """Share of positions where its likeliest token is the reference's, 0 to 1."""
    megabytes: float


class Calibration(BaseModel):
    """The file. Valid for models of one size and format, on one kind of processor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    model_bytes: int
    trials: tuple[Trial, ...]
    quality: tuple[Quality, ...] = ()

    def recipes_of(self, model_bytes: int) -> frozenset[str]:
        """The measured quantisations that a model file of this size can have; its size tells them apart."""
        sizes = {"given": float(self.model_bytes)} | {
            each.recipe: each.megabytes * 1e6 for each in self.quality
        }
        alike = (name for name, size in sizes.items() if abs(size - model_bytes) <= SIZE_TOLERANCE * size)
        return frozenset(alike)

    def best(self, model_bytes: int, backend: str | None = None) -> Trial | None:
        """The fastest way to run a model file of this size; with one backend, if one is named."""
        recipes = self.recipes_of(model_bytes)
        fitting = [t for t in self.trials if t.recipe in recipes and backend in (None, t.backend)]
        return max(fitting, key=lambda trial: trial.answer_tokens_per_s, default=None)

    def fastest_recipe(self, min_agreement: float, backend: str = "llama_cpp") -> str | None:
        """The quantisation that writes most tokens per second, of those that the backend reads and that keep
        at least this share of the reference's greedy tokens; None if none was measured or keeps as much."""
        kept = {each.recipe for each in self.quality if each.greedy_agreement >= min_agreement}
        left_out = {"given"} if backend == "llama_cpp" else {"given", *NOT_FOR_OPENVINO}
        made = [trial for trial in self.trials if trial.recipe in kept - left_out]
        best = max(made, key=lambda trial: trial.answer_tokens_per_s, default=None)
        return best.recipe if best else None


def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def calibration_path(model_path: Path, named: str | None = None) -> Path:
    """Where the calibration of a model is looked for: a named file, the variable's, or beside the model."""
    named = named or os.environ.get(PATH_VARIABLE)
    return Path(named) if named else model_path.with_name(model_path.name + ".calibration.json")


def read_calibration(model_path: Path, named: str | None = None) -> Calibration | None:
    """The calibration of such a model on this kind of processor, if there is one; no foreign one is used."""
    path = calibration_path(model_path, named)
    try:
        found = read_file(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s: not a calibration: %s", path, error)
        return None
    if found.cpu != cpu_name() or not found.recipes_of(model_path.stat().st_size):
        logger.warning("%s is for another processor or another model: not used", path)
        return None
    return found


def read_file(path: Path) -> Calibration:
    """Raises OSError, or ValueError for what is no calibration."""
    return Calibration.model_validate(json.loads(path.read_text(encoding="utf-8")))


def resolve(settings: EngineSettings, model_path: Path) -> EngineSettings:
    """Settings without `auto` in `backend`, `lanes` and `slots`: what was calibrated, else fixed defaults."""
    if "auto" not in (settings.backend, settings.lanes, settings.slots):
        return settings
    calibration = read_calibration(model_path, settings.calibration)
    wanted = None if settings.backend == "auto" else settings.backend
    best = calibration.best(model_path.stat().st_size, wanted) if calibration is not None else None
    backend = (best.backend if best else "llama_cpp") if settings.backend == "auto" else settings.backend
    lanes = settings.cores if settings.lanes == "auto" else settings.lanes
    if settings.lanes == "auto" and best is not None:
        lanes = min(best.lanes, settings.cores)
    slots = settings.slots
    if slots == "auto":
        slots = best.slots if best is not None else DEFAULT_SLOTS[backend]
    slots = min(slots, settings.batch_tokens - 1)
    changes = {"backend": backend, "lanes": lanes, "slots": slots}
    return EngineSettings.model_validate(settings.model_dump() | changes)


DEFAULT_SLOTS = {"llama_cpp": 16, "openvino": 256}
