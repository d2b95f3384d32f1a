"""Writing a GGUF file after a template: its metadata byte for byte, other weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ray_jobs.errors import ModelError
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.gguf_file import MAGIC, GgufFile
from ray_jobs.export.gguf_tensors import TIED_HEAD, Shape, TensorLayout

WeightType = Literal["f16", "bf16", "f32"]

GGML_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 30}
FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 32}
"""`general.file_type`, llama.cpp's `llama_ftype`."""
ALIGNMENT = 32
F16_MAX = 65504.0
KEPT = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Template tensors that follow from the config, not from weights: HF has no tensor for them."""


@dataclass(frozen=True)
class Planned:
    """One tensor of the new file; `hf_name` is None where the template's own is kept."""

    name: str
    hf_name: str | None
    shape: Shape


def plan_tensors(template: GgufFile, shapes: Mapping[str, Shape], layout: TensorLayout) -> list[Planned]:
    """Which weight goes where, in the template's order.

    A template without weights takes every weight, in the model's order. Raises ModelMismatch, naming
    the tensor, when a weight has no place, a template tensor no weight, or shapes differ; ModelError when
    two weights have one place.
    """
    sources = _sources(shapes, layout)
    if template.tensors.keys() <= KEPT:
        kept = [Planned(name, None, tensor.shape) for name, tensor in template.tensors.items()]
        return [*kept, *(Planned(name, hf_name, shapes[hf_name]) for name, hf_name in sources.items())]
    if "output.weight" in template.tensors and layout.tied:
        sources["output.weight"] = "model.embed_tokens.weight"
    for name in sources.keys() - template.tensors.keys():
        raise ModelMismatch(f"{template.path}: has no tensor {name} for the base's {sources[name]}")
    planned = []
    for name, tensor in template.tensors.items():
        hf_name = sources.get(name)
        if hf_name is None and name not in KEPT:
            raise ModelMismatch(f"{template.path}: the base has no weights for tensor {name}")
        if hf_name is not None and shapes[hf_name] != tensor.shape:
            raise ModelMismatch(
                f"{template.path}: tensor {name} is {list(tensor.shape)}, the base's {list(shapes[hf_name])}"
            )
        planned.append(Planned(name, hf_name, tensor.shape))
    return planned


def _sources(shapes: Mapping[str, Shape], layout: TensorLayout) -> dict[str, str]:
    """GGUF name -> HF name, for all weights. Raises ModelError where two of them would be one tensor."""
    sources: dict[str, str] = {}
    for hf_name in shapes:
        if hf_name == TIED_HEAD and layout.tied:
            continue
        name = layout.gguf_name(hf_name)
        if name is None:
            kind = layout.family.architecture
            raise ModelMismatch(f"the base's weight {hf_name} has no place in a GGUF of {kind}")
        if name in sources:
            raise ModelError(f"the base's weights {sources[name]} and {hf_name} are both tensor {name}")
        sources[name] = hf_name
    return sources


def write_gguf(
    template: GgufFile, state: Mapping[str, Any], layout: TensorLayout, out: Path, dtype: WeightType = "f16"
) -> None:
    """Writes `state` (HF name -> float tensor of torch or numpy) after `template`.

    Vectors are stored in F32, matrices in `dtype`; a matrix beyond the range of F16 in F32. The file
    appears whole. Raises ModelMismatch as `plan_tensors`, ModelError when a weight is not finite.
    """
    planned = plan_tensors(template, {name: tuple(values.shape) for name, values in state.items()}, layout)
    types = [_type_of(item, template, state, dtype) for item in planned]
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(_header(template, planned, types, dtype))
            for item, kind in zip(planned, types, strict=True):
                for part in _data(item, kind, template, state, layout):
                    part.tofile(file)
                _pad(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, out)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _type_of(item: Planned, template: GgufFile, state: Mapping[str, Any], dtype: WeightType) -> int:
    if item.hf_name is None:
        return template.tensors[item.name].type
    largest = float(abs(state[item.hf_name]).max())
    if not np.isfinite(largest):
        raise ModelError(f"weight {item.hf_name} holds values that are not finite")
    if len(item.shape) == 1 or (dtype == "f16" and largest > F16_MAX):
        return GGML_TYPES["f32"]
    return GGML_TYPES[dtype]


def _header(template: GgufFile, planned: Sequence[Planned], types: Sequence[int], dtype: WeightType) -> bytes:
    entries = [entry.raw for key, entry in template.entries.items() if key not in _REPLACED]
    entries.append(_text("general.file_type") + struct.pack("<II", 4, FILE_TYPES[dtype]))
    parts = [MAGIC, struct.pack("<IQQ", 3, len(planned), len(entries)), *entries]
    offset = 0
    for item, kind in zip(planned, types, strict=True):
        shape = item.shape[::-1]
        parts += [_text(item.name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)]
        offset += -(-_num_bytes(item.shape, kind) // ALIGNMENT) * ALIGNMENT
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


_REPLACED = frozenset({"general.file_type", "general.alignment"})


def _data(
    item: Planned, kind: int, template: GgufFile, state: Mapping[str, Any], layout: TensorLayout
) -> Iterator[NDArray[Any]]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if item.hf_name is None:
        yield template.raw(template.tensors[item.name])
        return
    values = layout.to_gguf(item.hf_name, np.asarray(state[item.hf_name], dtype=np.float32))
    yield quantize(np.ascontiguousarray(values), GGMLQuantizationType(kind))


def _num_bytes(shape: Shape, kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return prod(shape) // int(block) * int(block_bytes)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
