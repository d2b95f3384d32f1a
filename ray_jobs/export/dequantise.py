"""A GGUF model as a folder of safetensors weights and a tokenizer, so that it can be trained."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.errors import ModelError
from ray_jobs.export.families import FAMILIES
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import TIED_HEAD, Shape, TensorLayout, layout_of
from ray_jobs.export.gguf_writer import F16_MAX, KEPT, plan_tensors
from ray_jobs.export.safetensors_file import write_tensors

log = logging.getLogger(__name__)


def dequantised_folder(gguf: Path, folder: Path) -> Path:
    """`folder`, filled once from a GGUF file: config.json, tokenizer, weights (matrices in float16).

    The folder appears whole by one rename; of two processes that make it, one wins. Needs as much
    memory as the largest tensor in float32. Raises ModelError when the file is damaged, of a family
    that is not supported, or no instruct model.
    """
    if folder.is_dir():
        return folder
    file = GgufFile(gguf)
    _check(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s is dequantised to %s, once", gguf.name, folder)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        beside.chmod(0o755)
        _fill(file, beside)
        _publish(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _check(file: GgufFile) -> None:
    known = sorted({family.architecture for family in FAMILIES.values()})
    if file.architecture not in known:
        reason = f"architecture {file.architecture!r} is not supported; supported are {', '.join(known)}"
        raise ModelError(f"{file.path}: {reason}")
    if not file.get("tokenizer.chat_template"):
        raise ModelError(f"{file.path}: has no chat template: not an instruct model")
    scaled = sorted(KEPT & file.tensors.keys())
    if scaled:
        raise ModelError(
            f"{file.path}: {scaled[0]}: a GGUF with scaled rope cannot be the base; "
            "give the safetensors model as `model.base` and this file as `model.gguf`"
        )


def _publish(beside: Path, folder: Path) -> None:
    try:
        os.rename(beside, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same content
            raise


def _fill(file: GgufFile, out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source, name = str(file.path.parent), file.path.name
    try:
        config = AutoConfig.from_pretrained(source, gguf_file=name)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{file.path}: its tokenizer or config cannot be read: {error}") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layout = layout_of({**config.to_dict(), "architectures": []}, str(file.path))
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    plan_tensors(file, shapes, layout)
    if layout.tied:
        shapes.pop(TIED_HEAD, None)
    write_tensors(out / "model.safetensors", shapes, _weights(file, shapes, layout))
    config.architectures = [type(model).__name__]
    config.dtype = "float32"  # to compute in: matrices are stored in half of it
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _weights(
    file: GgufFile, shapes: dict[str, Shape], layout: TensorLayout
) -> Iterator[tuple[str, NDArray[Any]]]:
    for hf_name in shapes:
        gguf_name = layout.gguf_name(hf_name)
        assert gguf_name is not None  # plan_tensors found a place for each
        values = layout.from_gguf(hf_name, file.array(gguf_name))
        if values.ndim > 1 and not np.abs(values).max() <= F16_MAX:
            raise ModelError(f"{file.path}: tensor {gguf_name} holds values that float16 cannot")
        yield hf_name, values
