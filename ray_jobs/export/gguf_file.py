"""Reading a GGUF file without trusting it: keys, tensors, and where their bytes lie.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.errors import ModelError

MAGIC = b"GGUF"
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
"""GGUF's number of a type -> its layout for `struct`."""
STRING, ARRAY = 8, 9
CHUNK_BYTES = 1 << 25
"""Tensors are dequantised in pieces of about this many bytes of float32."""


@dataclass(frozen=True)
class Entry:
    """A key and its value: `raw` is the whole entry as it lies in the file."""

    key: str
    type: int
    value: Any
    """Scalars, strings and lists of them."""
    raw: bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor's place: `shape` has rows first, as in numpy; `type` is ggml's number of the format."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    num_bytes: int


class GgufFile:
    """A parsed header. Raises ModelError that names the file when it is truncated, foreign or malformed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.entries, self.tensors = _Parser(data).parse()
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror or error}") from error
        except (_FormatError, struct.error, ValueError) as error:
            raise ModelError(f"{path}: not a whole GGUF file: {error}") from error

    def get(self, key: str) -> Any:
        """The value of a key, None when there is none."""
        entry = self.entries.get(key)
        return None if entry is None else entry.value

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture"))

    def setting(self, name: str) -> Any:
        """`<architecture>.<name>`, as `attention.head_count`."""
        return self.get(f"{self.architecture}.{name}")

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.path, dtype=np.uint8, mode="r")

    def raw(self, tensor: Tensor) -> NDArray[np.uint8]:
        """The tensor's bytes, mapped from the file."""
        return self._bytes[tensor.offset : tensor.offset + tensor.num_bytes]

    def chunks(self, name: str) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The tensor in float32, a slice of its first axis at a time."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.type)
        num_rows = tensor.shape[0]
        raw = self.raw(tensor).reshape(num_rows, -1) if len(tensor.shape) > 1 else self.raw(tensor)[None]
        if len(tensor.shape) == 1:
            yield slice(0, num_rows), dequantize(raw[0].view(_dtype(kind)), kind).reshape(-1)
            return
        step = max(1, CHUNK_BYTES // (4 * prod(tensor.shape[1:])))
        for start in range(0, num_rows, step):
            rows = np.ascontiguousarray(raw[start : start + step])
            values = dequantize(rows.view(_dtype(kind)), kind)
            yield slice(start, start + len(rows)), values.reshape(-1, *tensor.shape[1:])

    def array(self, name: str) -> NDArray[np.float32]:
        """The whole tensor in float32."""
        return np.concatenate([values for _, values in self.chunks(name)])


def _dtype(kind: Any) -> Any:
    return {"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8)


class _FormatError(Exception):
    pass


class _Parser:
    """A position in the header; every read stays inside the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def parse(self) -> tuple[dict[str, Entry], dict[str, Tensor]]:
        if self._data[:4] != MAGIC:
            raise _FormatError(f"it begins with {self._data[:4]!r}")
        self._at = 4
        version, num_tensors, num_keys = self._read("<I"), self._read("<Q"), self._read("<Q")
        if version not in (2, 3):
            raise _FormatError(f"version {version} is not 2 or 3")
        entries = [self._entry() for _ in range(self._count(num_keys))]
        found = [self._tensor() for _ in range(self._count(num_tensors))]
        keys = {entry.key: entry for entry in entries}
        alignment = keys["general.alignment"].value if "general.alignment" in keys else 32
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _FormatError(f"alignment {alignment} is not a power of two")
        start = -(-self._at // alignment) * alignment
        tensors = {name: self._place(name, shape, kind, start + at) for name, shape, kind, at in found}
        if len(keys) != len(entries) or len(tensors) != len(found):
            raise _FormatError("a key or a tensor stands twice")
        return keys, tensors

    def _entry(self) -> Entry:
        start = self._at
        key = self._string()
        kind = self._read("<I")
        value = self._value(kind)
        return Entry(key, kind, value, self._data[start : self._at])

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._read(SCALARS[kind])
        if kind != ARRAY:
            raise _FormatError(f"a value of unknown type {kind}")
        item, count = self._read("<I"), self._count(self._read("<Q"))
        if item == STRING:
            return [self._string() for _ in range(count)]
        if item not in SCALARS:
            raise _FormatError(f"an array of values of type {item}")
        layout = f"<{count}{SCALARS[item][1]}"
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return list(values)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._read("<I")
        if not 0 < dimensions <= 4:
            raise _FormatError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._read("<Q") for _ in range(dimensions))[::-1]
        return name, shape, self._read("<I"), self._read("<Q")

    def _place(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise _FormatError(f"tensor {name} has the unknown format {kind}") from error
        num_values = prod(shape)
        if not num_values or shape[-1] % block:
            raise _FormatError(f"tensor {name} of shape {shape} does not consist of blocks of {block}")
        num_bytes = num_values // block * block_bytes
        if offset + num_bytes > len(self._data):
            raise _FormatError(f"tensor {name} ends beyond the file's {len(self._data)} bytes")
        return Tensor(name, shape, kind, offset, num_bytes)

    def _string(self) -> str:
        length = self._read("<Q")
        if self._at + length > len(self._data):
            raise _FormatError("a text runs beyond the end of the file")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8", "surrogateescape")

    def _read(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _count(self, count: int) -> int:
        if count > len(self._data) - self._at:
            raise _FormatError(f"a list of {count} items is longer than the file")
        return count
