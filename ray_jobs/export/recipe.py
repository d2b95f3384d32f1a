"""The number format that `export.quantization: auto` stands for."""

from pathlib import Path
from typing import Any

from ray_jobs.errors import ConfigError
from ray_jobs.export.settings import ExportSettings

PURE = "-pure"
"""How calibration names a recipe that quantises the embedding like the rest."""


def with_recipe(settings: ExportSettings, calibration: str | None) -> ExportSettings:
    """Settings whose number format is settled; `calibration` is the file that the engine's settings name.

    Raises ConfigError if that file cannot be read, or has no number format that keeps enough.
    """
    if settings.quantization != "auto":
        return settings
    if calibration is None:
        return settings.model_copy(update={"quantization": "q4_0"})
    recipe = _fastest(Path(calibration), settings.min_greedy_agreement)
    changes: dict[str, Any] = {
        "quantization": recipe.removesuffix(PURE),
        "pure": settings.pure or recipe.endswith(PURE),
    }
    return ExportSettings.model_validate(settings.model_dump() | changes)


def _fastest(path: Path, min_agreement: float) -> str:
    from serving.engine.calibration import read_file

    try:
        found = read_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine.settings.calibration: {path}: {error}".splitlines()[0]) from error
    recipe = found.fastest_recipe(min_agreement)
    if recipe is None:
        raise ConfigError(
            f"export.quantization: {path} has measured no quantisation that keeps "
            f"{min_agreement:.0%} of the greedy tokens (export.min_greedy_agreement)"
        )
    return recipe
