"""Hashes of big files, remembered by path, size and modification time."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.runs import file_sha256, write_whole


def remembered_sha256(path: Path, cache_dir: Path) -> str:
    """sha256 of a file, read from `cache_dir` where the same unchanged file was hashed before."""
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    identity = json.dumps([str(real), found.st_ino, found.st_size, found.st_mtime_ns])
    note = cache_dir / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    if note.is_file():
        return note.read_text(encoding="ascii")
    sha256 = file_sha256(real)
    write_whole(note, sha256.encode("ascii"))
    return sha256


def files_sha256(paths: Sequence[Path], cache_dir: Path) -> str:
    """One hash for several files: of their names and hashes, whatever folder they lie in."""
    lines = [f"{path.name} {remembered_sha256(path, cache_dir)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
