"""The number format that `export.quantization: auto` stands for."""

from pathlib import Path
from typing import Any

from ray_jobs.errors import ConfigError
from ray_jobs.export.settings import ExportSettings


def with_recipe(
    settings: ExportSettings, calibration: str | None, backend: str = "llama_cpp"
) -> ExportSettings:
    """Settings whose number format is settled; `calibration` and `backend` are the engine's.

    Raises ConfigError if that file cannot be read, or has no number format that keeps enough.
    """
    if settings.quantization != "auto":
        return settings
    if calibration is None:
        return settings.model_copy(update={"quantization": "q4_0"})
    recipe = _fastest(Path(calibration), settings.min_greedy_agreement, backend)
    quantization, _, embedding = recipe.partition("-")
    changes: dict[str, Any] = {"quantization": quantization, "embedding": None}
    if embedding == "pure":
        changes["pure"] = True
    elif embedding:
        changes["embedding"] = embedding
    return ExportSettings.model_validate(settings.model_dump() | changes)


def recipe_name(settings: ExportSettings) -> str:
    """As calibration names it: `q4_0`, `q4_0-pure`, `q4_0-bf16`; after the hyphen, what the embedding is."""
    embedding = settings.embedding or ("pure" if settings.pure else None)
    return f"{settings.quantization}-{embedding}" if embedding else settings.quantization


def _fastest(path: Path, min_agreement: float, backend: str) -> str:
    from serving.engine.calibration import read_file

    try:
        found = read_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine.settings.calibration: {path}: {error}".splitlines()[0]) from error
    recipe = found.fastest_recipe(min_agreement, backend)
    if recipe is None:
        raise ConfigError(
            f"export.quantization: {path} has measured no quantisation that keeps "
            f"{min_agreement:.0%} of the greedy tokens (export.min_greedy_agreement)"
        )
    return recipe
