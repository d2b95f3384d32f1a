"""What an exported model is, in `manifest.json` beside `model.gguf`."""

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_jobs.errors import ModelError
from ray_jobs.export.parity import Parity
from ray_jobs.export.untouched import Untouched
from ray_jobs.runs import dump_json, write_whole

FORMAT_VERSION = 1
CREATED_BY = ("torch", "transformers", "peft", "llama-cpp-python", "gguf")


@dataclass(frozen=True)
class Recipe:
    """How weights became the file; equal for all models that are compared."""

    quantization: str
    pure: bool
    template_sha256: str
    tensor_formats: dict[str, int]
    """Number format -> tensors; more than one matrix format where rows do not divide into blocks."""
    embedding: str | None = None
    """Number format of the token embedding and the output layer; None: llama.cpp's choice."""


@dataclass(frozen=True)
class Origin:
    """The base that the weights come from."""

    name: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of it follows from the inputs and the versions: no times, no paths."""

    sha256: str
    """Of model.gguf."""
    bytes: int
    recipe: Recipe
    base: Origin
    adapter_sha256: str | None
    """Of the adapter, or of all weights where those were trained; None where the model is the base itself."""
    untouched: Untouched
    """Weights that training left alone, compared with the template's."""
    parity: Parity
    created_by: dict[str, str]
    """Package -> version."""
    format_version: int = FORMAT_VERSION

    def write(self, path: Path) -> None:
        write_whole(path, dump_json(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Raises ModelError, naming the file, when it is missing, damaged or of another version."""
        try:
            data: dict[str, Any] = json.loads(path.read_bytes())
            if data["format_version"] != FORMAT_VERSION:
                raise ModelError(f"{path}: format version {data['format_version']}, not {FORMAT_VERSION}")
            parts = {"recipe": Recipe, "base": Origin, "untouched": Untouched, "parity": Parity}
            return cls(**{**data, **{name: kind(**data[name]) for name, kind in parts.items()}})
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: is damaged: {error}") from error


def versions() -> dict[str, str]:
    """Package -> installed version, of what an export computes with."""
    return {name: importlib.metadata.version(name) for name in CREATED_BY}
