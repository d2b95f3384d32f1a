"""A LoRA adapter's files, checked against the base before anything is loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.families import read_object
from ray_jobs.export.gguf_tensors import Shape
from ray_jobs.export.hashes import files_sha256
from ray_jobs.export.safetensors_file import read_shapes
from ray_jobs.export.weight_files import weight_files

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")
"""`init_lora_weights` that leave the base's weights as they are; PiSSA, OLoRA and the like do not."""
_PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_[A-Za-z_]+)(?:\.weight|\.bias)?$")


@dataclass(frozen=True)
class Adapter:
    """A checked adapter."""

    folder: Path
    touched: frozenset[str]
    """HF names of the weights that it changes."""


def check_adapter(folder: Path, base_shapes: Mapping[str, Shape], *, tied: bool) -> Adapter:
    """The adapter in `folder`, if it fits a base with weights of `base_shapes` (HF name -> shape).

    Raises ModelError when files are missing, pickled or of an unsupported kind, ModelMismatch, naming the
    weight, when the adapter is for another base.
    """
    _check_config(folder)
    touched = set()
    for key, shape in read_shapes(folder / WEIGHTS).items():
        name = key.removeprefix(PREFIX)
        found = _PART.match(name)
        weight = f"{found['module']}.weight" if found else name
        expected = base_shapes.get(weight)
        if expected is None:
            raise ModelMismatch(f"{folder}: changes {weight}, which the base does not have")
        if not _fits(found["part"] if found else None, shape, expected):
            raise ModelMismatch(f"{folder}: {key} is {list(shape)}, the base's {weight} is {list(expected)}")
        touched.add(weight)
    if not touched:
        raise ModelError(f"{folder / WEIGHTS}: holds no weights")
    if tied and (shared := touched & {"lm_head.weight", "model.embed_tokens.weight"}):
        raise ModelMismatch(
            f"{folder}: changes {sorted(shared)[0]}, which the base shares between its first and last layer"
        )
    return Adapter(folder, frozenset(touched))


def adapter_sha256(folder: Path, cache_dir: Path) -> str:
    """Hash of an adapter: of its weights and its config."""
    return files_sha256([folder / WEIGHTS, folder / CONFIG], cache_dir)


def base_shapes(hf_dir: Path) -> dict[str, Shape]:
    """HF name -> shape of the weights in a model folder."""
    return {name: shape for path in weight_files(hf_dir) for name, shape in read_shapes(path).items()}


def _check_config(folder: Path) -> None:
    path = folder / CONFIG
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: only LoRA and DoRA adapters are supported")
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise ModelError(f"{path}: init_lora_weights {start!r} changes the base's own weights")
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: has no {WEIGHTS} (pickled weights can run code and are not read)")


def _fits(part: str | None, shape: Shape, expected: Shape) -> bool:
    if part is None:
        return shape == expected
    if part.startswith("lora_A"):
        return len(shape) == 2 and shape[1:] == expected[1:]
    if part.startswith("lora_B"):
        return shape[0] == expected[0]
    return not part.startswith("lora_magnitude") or shape[0] == expected[0]
