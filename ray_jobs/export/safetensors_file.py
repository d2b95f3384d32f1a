"""Safetensors files: written a tensor at a time, and their headers read.

Format: https://huggingface.co/docs/safetensors, an 8-byte length, a JSON header, the data.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.errors import ModelError

MAX_HEADER_BYTES = 100_000_000
DTYPES = {"F16": "<f2", "F32": "<f4"}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a file. Raises ModelError when it is not a whole safetensors file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"its header of {length} bytes does not fit")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if 8 + length + end > size:
                raise ValueError(f"its data ends beyond the file's {size} bytes")
            return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a whole safetensors file: {error}") from error


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], parts: Iterable[tuple[str, NDArray[Any]]]
) -> None:
    """Writes matrices in float16 and vectors in float32.

    `parts` gives them in the order of `shapes`, each in one or more pieces.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        kind = _kind(shape)
        end = offset + np.dtype(DTYPES[kind]).itemsize * prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, values in parts:
            np.ascontiguousarray(values, dtype=DTYPES[_kind(shapes[name])]).tofile(file)
        file.flush()
        os.fsync(file.fileno())
        if file.tell() != 8 + len(text) + offset:
            raise ModelError(f"{path}: {file.tell()} bytes written, {8 + len(text) + offset} expected")


def _kind(shape: tuple[int, ...]) -> str:
    return "F16" if len(shape) > 1 else "F32"
