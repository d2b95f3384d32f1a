"""Which files of a model folder hold its weights."""

from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.export.families import read_object

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TWICE = "consolidated*.safetensors"
"""Files of Mistral's repositories that hold the same weights once more, under other names."""


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, those that transformers loads: one of the usual name, else what the
    index names. Where there is neither, all of the usual beginning, else all.

    Raises ModelError for an index that is damaged or names what is no file of the folder.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in _named(folder / INDEX)]
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))


def _named(index: Path) -> list[str]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index}: names no weights")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ModelError(f"{index}: names {name}, which is not there")
    return names
