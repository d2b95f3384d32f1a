"""One owner of a folder in an object store, without a lock that the store would have to know.

Who wants to work puts up a claim of its own, an object, and only then looks whether there are others: of two
who come at the same moment at least one sees the other. Whoever sees a claim that is alive takes its own down
again. The owner renews its claim; one that was not renewed for STALE_S, by the store's own clock, is that of
a dead owner and is taken down. All that this asks of a store is that what was put is listed at once, as S3,
GCS and Azure do.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from serving.storage.remote import Remote, StorageError

log = logging.getLogger(__name__)

BEAT_S = 10.0
STALE_S = 60.0
_TRIES, _PAUSE_S = 8, 1.0
FOLDER = "owners"


class Claimed(Exception):
    """Somebody else works on the folder; `owner` is what they say of themselves."""

    def __init__(self, owner: Mapping[str, Any]) -> None:
        super().__init__("the folder has another owner")
        self.owner = owner


@contextmanager
def claimed(
    folder: Remote, name: str, owner: Mapping[str, Any], on_lost: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], bool]]:
    """Owns the folder. Raises Claimed when another does, StorageError when the store does not answer.

    Gives what asks the store whether the claim still stands.

    `name` is this claimant's own: whoever uses it must know that no other process does, and takes over at
    once what a dead process left under it. `on_lost` is called, in another thread, when the claim was taken
    down because it could not be renewed for too long (a machine that slept, a network that was gone).
    """
    claim = _Claim(folder / FOLDER, name, owner)
    _take(claim)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(claim, ended, on_lost), daemon=True)
    beats.start()
    try:
        yield claim.stands
    finally:
        ended.set()
        beats.join()
        claim.take_down()


def _take(claim: _Claim) -> None:
    """Raises Claimed."""
    for number in range(_TRIES):
        claim.put(working=False)
        rival = claim.rival()
        if rival is None:
            claim.put(working=True)
            rival = claim.rival(working=True)  # one who was thought dead and came back
        if rival is None:
            return
        claim.take_down()
        if rival.get("working", True) or number == _TRIES - 1:
            raise Claimed(rival)
        time.sleep(random.uniform(0, _PAUSE_S * (number + 1)))  # both came at the same moment


def _beat(claim: _Claim, ended: threading.Event, on_lost: Callable[[], None]) -> None:
    renewed_s = time.time()
    while not ended.wait(BEAT_S):
        try:
            late = time.time() - renewed_s > STALE_S / 2
            lost = late and not claim.stands()  # by one who may be done by now, and left no claim
            if not lost:
                claim.put(working=True)
                lost = late and claim.rival(working=True) is not None
            if lost:
                on_lost()
                return
            renewed_s = time.time()
        except OSError as error:
            log.warning("the claim cannot be renewed: %s", error)


class _Claim:
    def __init__(self, folder: Remote, name: str, owner: Mapping[str, Any]) -> None:
        self._folder, self._file, self._owner = folder, f"{name}.json", owner
        self._beats = 0

    def put(self, *, working: bool) -> None:
        self._beats += 1
        seen = datetime.now(UTC).isoformat(timespec="seconds")
        said = {**self._owner, "seen": seen, "beats": self._beats, "working": working}
        (self._folder / self._file).write(json.dumps(said).encode())

    def stands(self) -> bool:
        """Whether it was put up and nobody has taken it down."""
        return self._file in self._folder.listing()

    def take_down(self) -> None:
        try:
            (self._folder / self._file).remove()
        except StorageError as error:
            log.warning("the claim stays until it is stale: %s", error)

    def rival(self, *, working: bool = False) -> dict[str, Any] | None:
        """Another claim that is alive, or one whose owner works already; those of the dead are taken down."""
        claims = self._folder.listing()
        if self._file not in claims:  # taken down by another, who then has a claim of its own
            return {}
        own_s = claims.pop(self._file).modified_s
        for file, stamp in claims.items():
            if own_s - stamp.modified_s > STALE_S:
                (self._folder / file).remove()
            elif (said := self._read(file)).get("working", True) or not working:
                return said
        return None

    def _read(self, file: str) -> dict[str, Any]:
        try:
            said = json.loads((self._folder / file).read())
        except (FileNotFoundError, ValueError):
            return {"working": False}
        return said if isinstance(said, dict) else {}
