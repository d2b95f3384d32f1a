"""What a training left behind: a LoRA adapter, or all weights of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.export import adapter
from ray_jobs.export.adapter import Adapter, adapter_sha256, base_shapes, check_adapter
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.gguf_tensors import TIED_HEAD, Shape
from ray_jobs.export.hashes import files_sha256

ADAPTER_FILES = (adapter.WEIGHTS, adapter.CONFIG)
ALL_WEIGHTS = "model*.safetensors*"
"""One file, or parts and an index."""


@dataclass(frozen=True)
class WholeModel:
    """All weights of a model, checked; its config and tokenizer are the base's."""

    folder: Path
    touched: frozenset[str]
    """HF names of the weights, all of which training may have changed."""


Trained = Adapter | WholeModel


def trained_files(folder: Path) -> tuple[str, ...]:
    """Names of the files in a checkpoint that make the tuned model; an adapter's where there are none."""
    whole = sorted(path.name for path in folder.glob(ALL_WEIGHTS))
    return tuple(whole) or ADAPTER_FILES


def check_trained(folder: Path, shapes: Mapping[str, Shape], *, tied: bool) -> Trained:
    """What is in `folder`, if it fits a base with weights of `shapes` (HF name -> shape).

    Raises ModelError or ModelMismatch, naming the weight, where it does not.
    """
    if trained_files(folder) == ADAPTER_FILES:
        return check_adapter(folder, shapes, tied=tied)
    found = base_shapes(folder)
    expected = {name: shape for name, shape in shapes.items() if not (tied and name == TIED_HEAD)}
    for name in sorted(expected.keys() | (found.keys() - {TIED_HEAD} if tied else found.keys())):
        if name not in expected:
            raise ModelMismatch(f"{folder}: has {name}, which the base does not have")
        if name not in found:
            raise ModelError(f"{folder}: {name} is missing")
        if found[name] != expected[name]:
            raise ModelMismatch(
                f"{folder}: {name} is {list(found[name])}, the base's is {list(expected[name])}"
            )
    return WholeModel(folder, frozenset(found))


def trained_sha256(folder: Path, cache_dir: Path) -> str:
    """Hash of what `trained_files` names."""
    names = trained_files(folder)
    if names == ADAPTER_FILES:
        return adapter_sha256(folder, cache_dir)
    return files_sha256([folder / name for name in names], cache_dir)
