"""Data files: local, by folder, by glob, or by any URI that fsspec opens; compressed or not."""

import glob
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ray_jobs.data.formats import READERS, RawRow
from ray_jobs.data.settings import FILE_SUFFIXES
from ray_jobs.errors import DataError
from serving.storage.remote import folder_path, is_uri

_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
MIN_INFLATED_BYTES = 64_000_000
MAX_INFLATION = 200
"""A compressed file that grows more than so many times, past a first size, is taken for a bomb."""


def file_rows(source: str) -> Iterator[RawRow]:
    """All rows of all files that `source` names, in order of file name.

    Raises DataError, naming file and line, when a file is missing, cut off or not what its name says.
    """
    filesystem, paths = find_files(source)
    for path in paths:
        with open_file(filesystem, path) as stream:
            yield from READERS[suffix_of(path)](stream, source if len(paths) == 1 else path)


def find_files(source: str) -> tuple[Any, list[str]]:
    """The file system and the data files: one file, all in a folder, or all that a glob matches."""
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(source)
        is_pattern = any(char in path for char in "*?[")
        if is_pattern and not _is_here(source):
            paths = [found for found in filesystem.glob(path) if _is_data(found, _fixed(path))]
        elif filesystem.isdir(path):
            there = filesystem.find(path)
            paths = [found for found in there if _is_data(found, path)]
            _refuse_saved(source, there, paths)
        elif filesystem.exists(path):
            paths = [path]
        else:
            raise DataError(f"{source}: no such file")
    except ImportError as error:
        raise DataError(f"{source}: {error}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: {_first_line(error)}") from error
    if not paths:
        raise DataError(f"{source}: holds no {', '.join(FILE_SUFFIXES)} file")
    unknown = [path for path in paths if not suffix_of(path)]
    if unknown:
        raise DataError(f"{unknown[0]}: must end in {', '.join(FILE_SUFFIXES)} (or .jsonl.gz)")
    return filesystem, sorted(paths)


def _is_here(source: str) -> bool:
    """Whether a name with the signs of a pattern is simply that of a file or folder on this machine."""
    return not is_uri(source) and folder_path(source).exists()


def _is_data(path: str, folder: str) -> bool:
    """Whether a file below a folder is one of its data files; hidden ones are the system's."""
    return _is_visible(path, folder) and not is_metadata(path)


def _is_visible(path: str, folder: str) -> bool:
    parts = path.removeprefix(f"{folder}/").split("/")
    return bool(suffix_of(path)) and not any(part.startswith(".") for part in parts)


def is_metadata(path: str) -> bool:
    """Whether a file is one that the library `datasets` puts beside the data."""
    return path.rpartition("/")[2] in _METADATA


def _refuse_saved(source: str, there: list[str], paths: list[str]) -> None:
    if not paths and any(path.endswith(".arrow") for path in there):
        raise DataError(f'{source}: was written by save_to_disk; use ds.to_parquet("{source}.parquet")')


def _fixed(pattern: str) -> str:
    """The folder that a pattern names before its first sign."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]


def suffix_of(path: str) -> str:
    """The suffix that decides how a file is read, or nothing."""
    name = path.lower().removesuffix(".gz")
    if name != path.lower() and name.endswith(".parquet"):
        return ""
    return next((suffix for suffix in FILE_SUFFIXES if name.endswith(suffix)), "")


def is_document(path: str) -> bool:
    """Whether a file may be a single JSON document, which is held in memory as a whole to be read."""
    return suffix_of(path) == ".json"


@contextmanager
def open_file(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed; what goes wrong while reading becomes a DataError."""
    try:
        with filesystem.open(path, "rb") as stream:
            if not path.lower().endswith(".gz"):
                yield stream
                return
            guarded: Any = io.BufferedReader(_Inflated(stream, path, filesystem.size(path) or 0), 1 << 18)
            yield guarded
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip data: {_first_line(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or _first_line(error)}") from error


class _Inflated(io.RawIOBase):
    """A decompressed stream that stops a file which grows beyond reason."""

    def __init__(self, stream: BinaryIO, path: str, size: int) -> None:
        self._stream = gzip.GzipFile(fileobj=stream)
        self._path = path
        self._left = max(MIN_INFLATED_BYTES, size * MAX_INFLATION)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path}: grows more than {MAX_INFLATION} times when decompressed")
        buffer[: len(data)] = data
        return len(data)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def files_of(source: str) -> list[Path]:
    """The local files that a source names: one, those of a folder, or those of a pattern; a run's inputs.

    What `datasets` puts beside the data is among them, though it holds no rows.
    """
    path = folder_path(source)
    if path.is_file():
        return [path]
    is_folder, named = path.is_dir(), path.as_posix()
    folder = named if is_folder else _fixed(named)
    found = path.rglob("*") if is_folder else map(Path, glob.glob(named, recursive=True))
    return sorted(file for file in found if file.is_file() and _is_visible(file.as_posix(), folder))
