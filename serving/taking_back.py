"""Puts the previous champion back when the new one's first answers are reason enough."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from serving.champion import Champion
from serving.deaths import EngineDeaths
from serving.engine import EngineError, ModelMismatch, RequestError, Stream
from serving.engine.types import ENGINE_FAILED
from serving.host import LoadedModel, ModelHost
from serving.probation import Probation, RollbackRule
from serving.registry import NothingToTakeBack, Registry, RegistryError
from serving.waits import Waits

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class Taker:
    """Watches the answers of one replica. One event loop calls it; the registry is changed on a thread."""

    def __init__(
        self,
        host: ModelHost,
        registry: Registry,
        rule: RollbackRule,
        *,
        deaths: EngineDeaths | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._registry = registry
        self._rule = rule
        self._deaths = deaths or EngineDeaths()
        self._clock = clock
        self._watched: tuple[LoadedModel, Champion | None] | None = None
        self._probation: Probation | None = None
        self._waits = Waits(1)
        self._is_taking = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Before the champion is loaded: take it back if processes have died with it. Blocks.

        Says so where this replica could not take a champion back.
        """
        if (problem := self._registry.write_problem()) is not None:
            log.warning("rollback: no champion can be taken back from here: %s", problem)
        try:
            self._registry.renew()
            champion = self._registry.champion()
        except RegistryError:
            return  # which is told when it is followed
        if champion is None or (until_s := self._until_s(champion)) is None or self._clock() > until_s:
            return
        since_s = until_s - self._rule.window_s
        if (reason := self._deaths.reason(champion.sha256, since_s=since_s)) is not None:
            log.error("champion %s is taken back: %s", champion.sha256[:12], reason)
            if not self._try(champion.sha256, reason):
                self._begin_taking(champion.sha256, reason)

    def stop(self) -> None:
        self._stopped.set()

    def began(self, model: LoadedModel, streams: Sequence[Stream]) -> None:
        """A call's requests have been submitted."""
        if self._watch(model) is not None and self._rule.max_first_token_s is not None:
            self._waits.add(streams)

    def see(self, model: LoadedModel, streams: Sequence[Stream]) -> None:
        """A call is over."""
        for stream in streams:
            if (probation := self._watch(model)) is None or not stream.done:
                continue
            result, now_s = stream.result(0), self._clock()
            waited_s = self._waits.waited_s(stream)
            reason = probation.reason(stream.request, result, now_s=now_s, waited_s=waited_s)
            self._judge(model, reason, has_failed=result.error_code == ENGINE_FAILED)

    def refused(self, model: LoadedModel, error: EngineError) -> None:
        """The model did not take a request."""
        if isinstance(error, RequestError) or (probation := self._watch(model)) is None:
            return
        if isinstance(error, ModelMismatch):  # of this request: the engine lives
            self._judge(model, probation.refused(now_s=self._clock()))
        elif not probation.is_over(self._clock()):
            self._judge(model, f"its engine failed: {error}", has_failed=True)

    def _watch(self, model: LoadedModel) -> Probation | None:
        """The champion's probation; None for every other model, and for a champion that is no longer new."""
        if model is not self._host.champion:
            return None
        champion = next(iter(self._host.history), None)
        if self._watched != (model, champion):  # it may be promoted again, too
            self._watched, self._probation = (model, champion), self._begin(champion, model.sha256)
            self._waits = Waits(model.engine.metrics().num_slots)
        return self._probation

    def _begin(self, champion: Champion | None, sha256: str) -> Probation | None:
        """From the time of its promotion, so that a replica that starts later does not begin anew."""
        until_s = None if champion is None or champion.sha256 != sha256 else self._until_s(champion)
        return None if until_s is None else Probation(self._rule, until_s=until_s)

    def _until_s(self, champion: Champion) -> float | None:
        """Until when it may be taken back; None: never, as nothing is before it, or it was put back itself.

        So one bad hour of the machine takes one champion back, not one after another.
        """
        if champion.previous is None or champion.restored_at is not None:
            return None
        try:
            return datetime.fromisoformat(champion.decided_at).timestamp() + self._rule.window_s
        except ValueError as error:
            log.error("champion %s is not watched: %s", champion.sha256[:12], error)
            return None

    # Taking it back.

    def _judge(self, model: LoadedModel, reason: str | None, *, has_failed: bool = False) -> None:
        """`has_failed`: the engine itself, so that this process may end before the champion is taken back."""
        if reason is None or self._is_taking.is_set():
            return
        self._probation = None
        if has_failed:
            self._deaths.failed(model.sha256)
        log.error("champion %s is taken back: %s", model.sha256[:12], reason)
        self._begin_taking(model.sha256, reason)

    def _begin_taking(self, sha256: str, reason: str) -> None:
        self._is_taking.set()
        threading.Thread(target=self._take_back, args=(sha256, reason), daemon=True).start()

    def _take_back(self, sha256: str, reason: str) -> None:
        """Until it is done, or there is nothing to take back any more: a lock or a store may be away."""
        pause_s = _FIRST_PAUSE_S
        try:
            while not self._try(sha256, reason) and not self._stopped.wait(pause_s):
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            self._is_taking.clear()
        try:
            self._host.follow()
        except Exception as error:  # which the follower tells, and tries again
            log.error("%s", error)

    def _try(self, sha256: str, reason: str) -> bool:
        """Whether nothing is left to do."""
        try:
            self._registry.rollback(only_from=sha256, reason=reason)
        except NothingToTakeBack as error:  # another replica may have been faster
            log.info("%s", error)
        except Exception as error:
            log.error("champion %s is still to be taken back: %s", sha256[:12], error)
            return False
        return True
