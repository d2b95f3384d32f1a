"""Is this file a GGUF model that loads? Asked before it is loaded into a process that matters."""

from __future__ import annotations

import logging
import mmap
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from serving.engine.errors import ModelLoadError
from serving.engine.llamacpp import amx

logger = logging.getLogger(__name__)

LOAD_LIMIT_S = 600.0
_MAX_KEYS, _MAX_TENSORS, _MAX_DIMENSIONS = 1 << 16, 1 << 20, 4
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_WHOLE = (0, 2, 4, 10)
"""Types of numbers without a sign."""
_STRING, _ARRAY = 8, 9
_verified: set[tuple[str, int, int, int]] = set()


def verify_model(path: str | Path, *, limit_s: float = LOAD_LIMIT_S) -> None:
    """Check the header here, then load the file in a child process, which a bad file may abort.

    Raises ModelLoadError naming the file. A file that was verified by this process, and whose identity, size
    and modification time are unchanged, is not verified again.
    """
    identity = _identity(path)
    if identity in _verified:
        return
    check_header(path)
    _load_in_child(Path(path), limit_s)
    _verified.add(identity)


def check_header(path: str | Path, *, vocab_only: bool = False) -> None:
    """Walk the header: magic, version, keys, tensors, and whether their data lies inside the file.

    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. Raises
    ModelLoadError. With `vocab_only` a file without tensors is sound: a template, before weights are put in.
    """
    _walked(path, min_tensors=0 if vocab_only else 1)


def num_parts(path: str | Path) -> int:
    """Over how many files a model is split of which this is one; 1: it is whole. Raises ModelLoadError."""
    return _walked(path, min_tensors=0).get("split.count") or 1


def trained_tokens(path: str | Path) -> int | None:
    """The longest text that a model was trained for; None if its file does not say. Raises ModelLoadError."""
    counts = _walked(path, min_tensors=0).items()
    return next((count for key, count in counts if key.endswith(".context_length")), None)


def _walked(path: str | Path, *, min_tensors: int) -> dict[str, int]:
    """The header's whole numbers, by their keys."""
    size = _identity(path)[2]
    if size < _HEADER.size:
        raise ModelLoadError(f"{path}: {size} bytes are too few for a GGUF file")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        try:
            walk.run(min_tensors)
        except (_FormatError, struct.error) as error:
            raise ModelLoadError(f"{path}: corrupt or truncated GGUF: {error}") from error
        return walk.numbers


class _FormatError(Exception):
    pass


_HEADER = struct.Struct("<4sIQQ")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class _Walk:
    """A position in the header; every step checks that it stays inside the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._at = _HEADER.size
        self._alignment = 32
        self.numbers: dict[str, int] = {}

    def run(self, min_tensors: int = 1) -> None:
        magic, version, num_tensors, num_keys = _HEADER.unpack_from(self._data)
        if magic != b"GGUF":
            raise _FormatError(f"it begins with {magic!r}, not with b'GGUF'")
        if version not in (2, 3):
            raise _FormatError(f"version {version} is not 2 or 3")
        if num_keys > _MAX_KEYS or not min_tensors <= num_tensors <= _MAX_TENSORS:
            raise _FormatError(f"{num_keys} keys and {num_tensors} tensors are out of bounds")
        for _ in range(num_keys):
            self._key_value()
        offsets = [self._tensor() for _ in range(num_tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        if offsets and start + max(offsets) >= self._size:
            raise _FormatError(f"tensor data ends beyond the file's {self._size} bytes")

    def _key_value(self) -> None:
        key = self._string()
        kind = self._number(_U32)
        at = self._at
        self._value(kind)
        if kind in _WHOLE:
            self.numbers[key.decode("utf-8", "replace")] = int.from_bytes(self._data[at : self._at], "little")
        if key == b"general.alignment" and kind == 4:
            (self._alignment,) = _U32.unpack_from(self._data, at)
            if self._alignment == 0 or self._alignment & (self._alignment - 1):
                raise _FormatError(f"alignment {self._alignment} is not a power of two")

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            item, count = self._number(_U32), self._number(_U64)
            if item in _SCALAR_BYTES:
                self._skip(count * _SCALAR_BYTES[item])
            elif item == _STRING and count * 8 <= self._size:
                for _ in range(count):
                    self._skip(self._number(_U64))
            else:
                raise _FormatError(f"an array of {count} values of type {item}")
        elif kind in _SCALAR_BYTES:
            self._skip(_SCALAR_BYTES[kind])
        else:
            raise _FormatError(f"a value of unknown type {kind}")

    def _tensor(self) -> int:
        self._string()
        dimensions = self._number(_U32)
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise _FormatError(f"a tensor of {dimensions} dimensions")
        self._skip(8 * dimensions + 4)
        return self._number(_U64)

    def _string(self) -> bytes:
        length = self._number(_U64)
        self._skip(length)
        return self._data[self._at - length : self._at]

    def _number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return int(value)

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > self._size:
            raise _FormatError(f"the header runs beyond the file's {self._size} bytes")


def _identity(path: str | Path) -> tuple[str, int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from error
    if not os.path.isfile(path):
        raise ModelLoadError(f"{path}: not a file")
    return os.path.realpath(path), found.st_ino, found.st_size, found.st_mtime_ns


_CHILD = """
import sys
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.llamacpp.trial import try_model
try:
    try_model(LlamaModel.open(sys.argv[1]))
except Exception as error:
    sys.exit(f"{error}")
"""


def _load_in_child(path: Path, limit_s: float) -> None:
    failure = _try_in_child(path, limit_s, {})
    if failure is None:
        return
    may_be_amx = os.environ.get(amx.SWITCH) != "1" and failure.by_signal and amx.has_amx()
    if may_be_amx and _try_in_child(path, limit_s, {amx.SWITCH: "1"}) is None:
        os.environ[amx.SWITCH] = "1"
        logger.warning(
            "this build of llama.cpp crashes in its AMX kernels, so it runs without them; to use them "
            "build llama-cpp-python with CMAKE_ARGS='-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse'"
        )
        return
    raise ModelLoadError(f"{path}: cannot be loaded ({failure.message})")


@dataclass(frozen=True, slots=True)
class _Failure:
    message: str
    by_signal: bool


def _try_in_child(path: Path, limit_s: float, extra: dict[str, str]) -> _Failure | None:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, **extra, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-P", "-c", _CHILD, str(path.resolve())]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelLoadError(f"{path}: loading it took longer than {limit_s:g} s") from error
    if done.returncode == 0:
        return None
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    message = f"{how} in a child process: {lines[-1] if lines else 'no message'}"
    return _Failure(message, by_signal=done.returncode < 0)
