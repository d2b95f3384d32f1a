"""The header check: hostile and broken files are refused by name, before native code sees them."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from serving.engine.errors import ModelLoadError
from serving.engine.gguf_check import check_header, num_parts, trained_tokens, verify_model


def gguf(
    *, magic: bytes = b"GGUF", version: int = 3, num_tensors: int = 1, keys: bytes = b"", num_keys: int = 0
) -> bytes:
    header = struct.pack("<4sIQQ", magic, version, num_tensors, num_keys) + keys
    tensor = text(b"w") + struct.pack("<IQIQ", 1, 8, 0, 0)
    body = header + tensor
    return body + b"\0" * (-len(body) % 32) + b"\0" * 32


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


def test_a_sound_header_passes(tmp_path: Path) -> None:
    keys = key(b"general.architecture", 8, text(b"llama")) + key(
        b"tokens", 9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"b")
    )
    data = gguf(keys=keys, num_keys=2)
    check_header(write(tmp_path, data))
    with pytest.raises(ModelLoadError):
        check_header(write(tmp_path, data.replace(b"llama", b"llam")))  # the one byte that it lacks is missed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (b"GGUF", "too few"),
        (gguf(magic=b"PK\3\4"), "not with b'GGUF'"),
        (gguf(version=1), "version 1"),
        (gguf(version=0x03000000), "version"),
        (gguf(num_tensors=0), "out of bounds"),
        (gguf(num_tensors=2**63), "out of bounds"),
        (gguf(num_keys=2**40), "out of bounds"),
        (gguf(keys=struct.pack("<Q", 2**63), num_keys=1), "beyond the file"),
        (gguf(keys=key(b"k", 9, struct.pack("<IQ", 8, 2**60)), num_keys=1), "array of"),
        (gguf(keys=key(b"k", 9, struct.pack("<IQ", 4, 2**62)), num_keys=1), "beyond the file"),
        (gguf(keys=key(b"k", 9, struct.pack("<IQ", 9, 1)), num_keys=1), "array of"),
        (gguf(keys=key(b"k", 77, b""), num_keys=1), "unknown type 77"),
        (gguf(keys=key(b"general.alignment", 4, struct.pack("<I", 0)), num_keys=1), "power of two"),
        (gguf()[:-40], "GGUF"),
    ],
)
def test_broken_headers_are_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(ModelLoadError, match=reason) as raised:
        check_header(path)
    assert str(path) in str(raised.value)


def test_a_thousand_mutations_never_do_worse_than_a_typed_error(tmp_path: Path) -> None:
    rng = random.Random(3)
    sound = gguf(keys=key(b"general.architecture", 8, text(b"llama")), num_keys=1)
    num_refused = 0
    for _ in range(1000):
        data = bytearray(sound[: rng.randint(1, len(sound))])
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            check_header(write(tmp_path, bytes(data)))
        except ModelLoadError:
            num_refused += 1
    assert num_refused > 900  # the others were changed where any byte will do


def test_what_is_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ModelLoadError, match=str(path)):
            verify_model(path)


def test_a_template_without_tensors_is_sound_for_its_vocabulary_alone(tmp_path: Path) -> None:
    path = tmp_path / "template.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(16, "little"))
    check_header(path, vocab_only=True)
    with pytest.raises(ModelLoadError, match="0 tensors are out of bounds"):
        check_header(path)


def test_what_a_header_says_of_parts_and_of_texts(tmp_path: Path) -> None:
    counts = key(b"split.count", 2, struct.pack("<H", 3)) + key(
        b"llama.context_length", 4, struct.pack("<I", 1024)
    )
    path = write(tmp_path, gguf(keys=counts, num_keys=2))
    assert (num_parts(path), trained_tokens(path)) == (3, 1024)
    scaled = key(b"llama.rope.scaling.original_context_length", 4, struct.pack("<I", 64))
    path = write(tmp_path, gguf(keys=scaled, num_keys=1))
    assert (num_parts(path), trained_tokens(path)) == (1, None)
