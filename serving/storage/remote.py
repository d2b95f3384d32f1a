"""Objects by URI: read, written whole, listed, removed. Nothing is kept on this node."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

_CHUNK_BYTES = 8 << 20
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S, _ATTEMPTS = 10, 60, 5
_GCS_RETRIES_S = 30
_BY_PYARROW = ("s3", "gs", "gcs", "abfs", "abfss")
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs"}
_REGION = ("AWS_REGION", "AWS_DEFAULT_REGION")
_CREDENTIALS = "are there credentials for it (AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role of the node)?"
_REASONS = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": f"access is denied; {_CREDENTIALS}",
    "INVALID_ACCESS_KEY_ID": f"access is denied; {_CREDENTIALS}",
    "INVALID_CLIENT_TOKEN_ID": f"access is denied; {_CREDENTIALS}",
    "SIGNATURE_DOES_NOT_MATCH": f"access is denied; {_CREDENTIALS}",
    "NETWORK_CONNECTION": "the store cannot be reached",
}


class StorageError(OSError):
    """A store cannot do what was asked; one line naming the URI and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True)
class Stamp:
    """Tells versions of an object apart: a rewritten one has another time, by the store's own clock."""

    num_bytes: int
    modified_s: float


def is_uri(address: str) -> bool:
    """Whether an address names an object store; file:// and plain paths name folders."""
    return "://" in address and not address.startswith("file://")


def local_path(text: str) -> Path:
    """A path of this machine. A home that cannot be found (`~nobody`) stays as it is written."""
    return Path(os.path.expanduser(text))


def folder_path(address: str) -> Path:
    """The folder that a plain path or a file:// URI names."""
    if not address.startswith("file://"):
        return local_path(address)
    return Path(unquote(urlsplit(address).path))


def absolute(address: str) -> str:
    """The address, whatever the working directory is."""
    return address.rstrip("/") if is_uri(address) else str(folder_path(address).resolve())


@dataclass(frozen=True)
class Remote:
    """An object, or a folder of objects. A write appears whole or not at all.

    Methods raise StorageError, those that read FileNotFoundError where nothing is there.
    """

    uri: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.uri}/{name}")

    @property
    def filesystem(self) -> Any:
        """The store as a pyarrow.fs.FileSystem, in which this lies at `path`."""
        return self._opened()[0]

    @property
    def path(self) -> str:
        return self._opened()[1]

    def _opened(self) -> tuple[Any, str]:
        with _named(self.uri):
            return _open(self.uri)

    def read(self) -> bytes:
        with _named(self.uri), self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def sha256(self) -> str:
        """Of the object's content, which is read for it."""
        digest = hashlib.sha256()
        with _named(self.uri), self.filesystem.open_input_stream(self.path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def write(self, data: bytes) -> None:
        self._put(lambda: io.BytesIO(data))

    def upload(self, source: Path) -> None:
        self._put(lambda: source.open("rb"))

    def _put(self, opened: Callable[[], BinaryIO]) -> None:
        """A stream that is closed too early makes an object of what it has: no interrupt may do that."""

        def put() -> None:
            with (
                opened() as file,
                _named(self.uri),
                self.filesystem.open_output_stream(self.path) as stream,
            ):
                while chunk := file.read(_CHUNK_BYTES):
                    stream.write(chunk)

        _to_its_end(put)

    def download(self, target: Path) -> None:
        """Into a file that appears whole."""
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            with (
                beside.open("wb") as file,
                _named(self.uri),
                self.filesystem.open_input_stream(self.path) as stream,
            ):
                while chunk := stream.read(_CHUNK_BYTES):
                    file.write(chunk)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)

    def stamp(self) -> Stamp | None:
        """Of an object; None where there is none."""
        with _named(self.uri):
            info = self.filesystem.get_file_info(self.path)
            return _stamp_of(self.filesystem, info) if info.is_file else None

    def listing(self) -> dict[str, Stamp]:
        """Every object of the folder and of those within, by its path in it; none if it is missing."""
        with _named(self.uri):
            import pyarrow.fs as arrow

            start = self.path.rstrip("/") + "/"
            found = self.filesystem.get_file_info(
                arrow.FileSelector(self.path, recursive=True, allow_not_found=True)
            )
            files = (info for info in found if info.is_file)
            return {info.path.removeprefix(start): _stamp_of(self.filesystem, info) for info in files}

    def remove(self) -> None:
        """The object, or the folder with all that is in it; nothing where there is none."""
        with _named(self.uri):
            import pyarrow.fs as arrow

            kind = self.filesystem.get_file_info(self.path).type
            with suppress(FileNotFoundError):  # another was faster
                if kind == arrow.FileType.File:
                    self.filesystem.delete_file(self.path)
                elif kind == arrow.FileType.Directory:
                    self.filesystem.delete_dir(self.path)

    def check(self) -> None:
        """Raises StorageError when there is no such bucket, or it cannot be listed."""
        with _named(self.uri):
            import pyarrow.fs as arrow

            selector = arrow.FileSelector(self.path, allow_not_found=True)
            listed = self.filesystem.get_file_info(selector)
            if listed or not self.uri.startswith("s3://"):
                return
            bucket = self.filesystem.get_file_info(self.path.partition("/")[0])
            if bucket.type == arrow.FileType.NotFound:
                raise StorageError(f"{self.uri}: {_REASONS['NO_SUCH_BUCKET']}")


def _to_its_end(work: Callable[[], None]) -> None:
    """Does it, and lets an interrupt wait until it is done; a second one leaves it as it is."""
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    errors: list[BaseException] = []
    done = threading.Event()  # a second join() of an interrupted one returns at once (Python 3.11)

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        done.wait()
    except BaseException:
        if thread.ident is not None:  # it has begun
            done.wait()
        raise
    if errors:
        raise errors[0]


def _stamp_of(filesystem: Any, info: Any) -> Stamp:
    if info.mtime_ns is not None:
        return Stamp(info.size, info.mtime_ns / 1e9)
    return Stamp(info.size, filesystem.handler.fs.modified(info.path).timestamp())


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Errors of the libraries as StorageError; an object that is missing as FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except Exception as error:
        by_library = type(error).__module__.partition(".")[0] == "pyarrow"
        if by_library or isinstance(error, (OSError, ImportError, ValueError)):
            raise StorageError(f"{uri}: {reason(error)}") from error
        raise


def reason(error: Exception) -> str:
    """Of a library's error, in one line."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {error.name.partition('.')[0]}"
    text = " ".join(str(error).split())
    code = re.search(r"AWS Error ([A-Z_]+)", text)
    if code and code[1] in _REASONS:
        return _REASONS[code[1]]
    return text[:300] or type(error).__name__


def _open(uri: str) -> tuple[Any, str]:
    scheme, _, rest = uri.partition("://")
    if "?" in rest:
        raise ValueError("has a query; settings of the store belong into the environment (AWS_ENDPOINT_URL)")
    bucket = rest.partition("/")[0]
    if scheme == "s3":
        endpoint, region = _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), _variable(*_REGION)
        return _s3(bucket, endpoint, region), rest
    if scheme in _BY_PYARROW and (opened := _by_pyarrow(scheme, uri)) is not None:
        return opened
    return _by_fsspec(scheme, uri)


def _variable(*names: str) -> str | None:
    """The first of the variables of the environment that is set."""
    return next((value for name in names if (value := os.environ.get(name))), None)


@lru_cache(maxsize=16)
def _s3(bucket: str, endpoint: str | None, region: str | None) -> Any:
    """Amazon's store or, by AWS_ENDPOINT_URL, one that speaks like it."""
    import pyarrow.fs as arrow

    if region is None and endpoint is None:
        region = arrow.resolve_s3_region(bucket)
    return arrow.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=endpoint,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        retry_strategy=arrow.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )


def _by_pyarrow(scheme: str, uri: str) -> tuple[Any, str] | None:
    """None where this pyarrow was built without the store."""
    import pyarrow.fs as arrow

    if scheme in ("gs", "gcs"):
        if not hasattr(arrow, "GcsFileSystem"):
            return None
        return _gcs(), uri.partition("://")[2]
    if not hasattr(arrow, "AzureFileSystem"):
        return None
    filesystem, path = arrow.FileSystem.from_uri(uri)
    return filesystem, path


@lru_cache(maxsize=1)
def _gcs() -> Any:
    import pyarrow.fs as arrow

    return arrow.GcsFileSystem(retry_time_limit=timedelta(seconds=_GCS_RETRIES_S))


def _by_fsspec(scheme: str, uri: str) -> tuple[Any, str]:
    """Any other store that a package of fsspec knows."""
    import fsspec
    import pyarrow.fs as arrow

    try:
        filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        raise ImportError(f"pip install {package}" if package else str(error)) from error
    return arrow.PyFileSystem(arrow.FSSpecHandler(filesystem)), path
