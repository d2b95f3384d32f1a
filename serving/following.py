"""A replica follows the registry: what becomes champion there is served here."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from serving.engine import EngineError
from serving.host import ModelHost, NotReady
from serving.registry import Registry, RegistryError

log = logging.getLogger(__name__)

_RETRY_S = 5.0
"""A change that could not be followed is looked at again after this; a model that does not load is tried
again less and less often (`serving.backoff`)."""
_PATIENCE_S = 120.0
"""How long a replica that can serve nothing tries before it gives up: mounts and stores may come up later."""
_SEND_S = 60.0
"""How often shadow answers go into a registry in an object store."""


class NotServable(Exception):
    """There is a champion, and neither it nor one before it can be served here."""


class Follower:
    """Looks at the registry every `every_s` seconds, on a thread that nothing but `stop` ends."""

    def __init__(
        self,
        host: ModelHost,
        registry: Registry,
        *,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._registry = registry
        self._every_s = every_s
        self._clock = clock
        self._stop = threading.Event()
        self._logged: str | None = None
        self._seen: tuple[int, int, int] | None = None
        self._tried_s = self._sent_s = clock()

    def start(self) -> None:
        """The champion as it is now, which may take its time to load; then every later one.

        A registry without a champion is waited for. Raises NotServable where there is one, or may be one, and
        for a while nothing that can be served: Serve then keeps the replicas that it has, and tries again.
        """
        until_s = self._clock() + _PATIENCE_S
        while not self._begin():
            if self._clock() >= until_s or self._stop.wait(_RETRY_S):
                raise NotServable(self._host.last_error or "the registry cannot be read")
        threading.Thread(target=self._watch, name="watch-registry", daemon=True).start()

    def _begin(self) -> bool:
        """Whether something is served, or there is nothing to serve yet."""
        is_known = self.renew()
        self._seen, self._tried_s = _stamp(self._registry), self._clock()
        self.follow()
        return self._host.champion is not None or (is_known and self._is_empty())

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopped(self) -> threading.Event:
        return self._stop

    def follow(self) -> None:
        """Serve the champion; why that cannot be is told once."""
        try:
            self._host.follow()
            self._logged = None
        except Exception as error:
            is_told = isinstance(error, RegistryError | EngineError | NotReady)
            if self._logged != (said := str(error) or type(error).__name__):
                log.error("the champion cannot be served: %s", said, exc_info=not is_told)
            self._logged = said

    def renew(self) -> bool:
        """While the store does not answer, what it last said goes on; False then."""
        try:
            self._registry.renew()
        except RegistryError as error:
            log.error("the registry cannot be read: %s", error)
            return False
        return True

    def look(self) -> None:
        """One look at the registry."""
        self.renew()
        if self._clock() - self._sent_s > _SEND_S:
            self._sent_s = self._clock()
            self._send()
        stamp = _stamp(self._registry)
        again = self._host.last_error is not None and self._clock() - self._tried_s > _RETRY_S
        if stamp != self._seen or again:
            self._seen, self._tried_s = stamp, self._clock()
            self.follow()

    def _is_empty(self) -> bool:
        try:
            return self._registry.champion() is None
        except RegistryError:
            return False

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
            except Exception:  # a thread that has ended would leave every later champion unseen
                log.exception("the registry is looked at again in %g s", self._every_s)

    def _send(self) -> None:
        try:
            self._registry.send_rows()
        except OSError as error:
            log.error("shadow answers stay on this node: %s", error)


def _stamp(registry: Registry) -> tuple[int, int, int] | None:
    try:
        found = os.stat(registry.file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
