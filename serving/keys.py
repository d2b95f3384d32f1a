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


@dataclass(frozen=True)
class ApiKey:
    """One caller."""

    name: str
    digest: bytes
    requests_per_minute: int | None = None


class KeyRing:
    """The keys of a file, which is read again when it changes: keys come and go while the endpoint runs.

    Nobody is let in while the file is missing or cannot be read, or by a key that is no longer in it.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._keys: tuple[ApiKey, ...] = ()
        self._stamp: _Stamp | None = None
        self._looked_s = clock()
        self._read()

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
        if _stamp(self._path) != self._stamp:
            self._read()

    def _read(self) -> None:
        stamp = _stamp(self._path)  # first: what is written meanwhile is read next time
        try:
            self._keys, self._stamp = read_keys(self._path), stamp
        except OSError as error:
            self._keys, self._stamp = (), None
            log.error("no request is answered: %s: cannot be read: %s", self._path, error.strerror)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """A line that is no key lets nobody in, and is told in the log. Raises OSError."""
    keys = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            wanted = "'<sha256 of the key> <name> [requests per minute]'"
            log.error("%s line %d is left out: not %s", path, number, wanted)
            continue
        digest, name, rate = match.groups()
        keys.append(ApiKey(name, bytes.fromhex(digest), int(rate) if rate else None))
    if not keys:
        log.error("%s: it holds no key: no request is answered", path)
    return tuple(keys)


_Stamp = tuple[int, int, int, int]


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


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
