"""API keys: only their sha256 is kept, one per line.

    # sha256 of the key, a name for logs and limits, optionally requests per minute
    9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  alice  600

`python -m serving.keys NAME` makes a key and prints its line.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_LINE = re.compile(r"([0-9a-fA-F]{64})\s+(\S{1,64})(?:\s+([1-9][0-9]{0,8}))?")
_LOOK_S = 1.0


class KeysError(ValueError):
    """A key file is missing or malformed; one line naming file and line."""


@dataclass(frozen=True)
class ApiKey:
    """One caller."""

    name: str
    digest: bytes
    requests_per_minute: int | None = None


class KeyRing:
    """The keys of a file. A changed file is read again: keys come and go while the endpoint runs."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises KeysError."""
        self._path = path
        self._clock = clock
        self._keys = read_keys(path)
        self._stamp = _stamp(path)
        self._looked_s = clock()

    def find(self, key: str) -> ApiKey | None:
        """Whose key it is. Every key is compared, in constant time, so that the time taken tells nothing."""
        self._refresh()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for each in self._keys:
            if hmac.compare_digest(each.digest, digest):
                found = each
        return found

    def _refresh(self) -> None:
        if self._clock() - self._looked_s < _LOOK_S:
            return
        self._looked_s = self._clock()
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._keys = read_keys(self._path)
        except KeysError as error:
            log.error("the keys stay as they were: %s", error)
        self._stamp = stamp


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Raises KeysError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{path}: cannot be read: {error}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise KeysError(f"{path} line {number}: not '<sha256 of the key> <name> [requests per minute]'")
        digest, name, rate = match.groups()
        keys.append(ApiKey(name, bytes.fromhex(digest), int(rate) if rate else None))
    if not keys:
        raise KeysError(f"{path}: it holds no key")
    return tuple(keys)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def main(arguments: list[str]) -> int:
    """`python -m serving.keys NAME`: the key goes to standard error, its line to standard output."""
    if len(arguments) != 1 or not re.fullmatch(r"[^\s#]{1,64}", arguments[0]):
        sys.stderr.write("usage: python -m serving.keys NAME >> KEYS_FILE\n")
        return 2
    key = f"sk-{secrets.token_urlsafe(32)}"
    sys.stderr.write(f"{key}\n")
    sys.stdout.write(f"{hashlib.sha256(key.encode()).hexdigest()}  {arguments[0]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
