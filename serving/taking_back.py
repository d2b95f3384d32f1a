"""Puts the previous champion back when the new one's first answers are reason enough."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from serving.engine import EngineError, Stream
from serving.host import LoadedModel, ModelHost, NotReady
from serving.probation import Probation, RollbackRule
from serving.registry import Registry, RegistryError

log = logging.getLogger(__name__)


class Taker:
    """Watches the answers of one replica. One event loop calls it; the registry is changed on a thread."""

    def __init__(
        self,
        host: ModelHost,
        registry: Registry,
        rule: RollbackRule,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._registry = registry
        self._rule = rule
        self._clock = clock
        self._watched: str | None = None
        self._probation: Probation | None = None

    def see(self, model: LoadedModel, streams: Sequence[Stream]) -> None:
        """A call is over."""
        if model is not self._host.champion:
            return
        if model.sha256 != self._watched:
            self._watched, self._probation = model.sha256, self._begin(model.sha256)
        for stream in streams:
            if self._probation is None or not stream.done:
                continue
            reason = self._probation.reason(stream.request, stream.result(0), now_s=self._clock())
            if reason is not None:
                self._probation = None
                log.error("champion %s is taken back: %s", model.sha256[:12], reason)
                threading.Thread(target=self._take_back, args=(model.sha256, reason), daemon=True).start()

    def _begin(self, sha256: str) -> Probation | None:
        """From the time of its promotion, so that a replica that starts later does not begin anew."""
        try:
            champion = self._registry.champion()
            if champion is None or champion.sha256 != sha256 or champion.previous is None:
                return None
            decided_s = datetime.fromisoformat(champion.decided_at).timestamp()
        except (RegistryError, ValueError) as error:
            log.error("champion %s is not watched: %s", sha256[:12], error)
            return None
        return Probation(self._rule, until_s=decided_s + self._rule.window_s)

    def _take_back(self, sha256: str, reason: str) -> None:
        try:
            self._registry.rollback(only_from=sha256, reason=reason)
            self._host.follow()
        except (RegistryError, EngineError, NotReady) as error:  # another replica may have been faster
            log.error("%s", error)
