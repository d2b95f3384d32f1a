"""Gives a canary its share of a replica's calls, for as long as its model can answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from serving.calls import Call
from serving.canary import Canary
from serving.engine import EngineError
from serving.host import LoadedModel, ModelHost, NotReady
from serving.names import UnknownModel
from serving.registry import RegistryError

log = logging.getLogger(__name__)

_RETRY_S = 30.0
"""A canary that could not be loaded, or was thrown out, is loaded again after this at the soonest."""

CANNOT_SERVE = (UnknownModel, NotReady, RegistryError, EngineError)
"""Why a model does not answer, through no fault of the request."""


class CanaryRouter:
    """While the canary's model cannot be loaded its users get the champion. One event loop calls it."""

    def __init__(
        self,
        host: ModelHost,
        load: Callable[[str], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load`: loads the model of that name."""
        self._host = host
        self._load = load
        self._clock = clock
        self._rule: Canary | None = None
        self._loading: asyncio.Task[None] | None = None
        self._is_awaited = False
        self._tried_s = 0.0
        self._tried_beside: LoadedModel | None = None

    async def set_rule(self, rule: Canary | None) -> None:
        """Load the canary's model, then give it its share."""
        self._rule = None
        if rule is not None and rule.share > 0:
            await self._try(rule.model)
            self._rule = rule

    async def model_for(self, call: Call) -> str | None:
        """The canary's name if it gets the call, and its model is loaded; None: what the call asks for.

        Beside a new champion its users wait for it once, so that they stay with a model; after a failure it
        is loaded while they get the champion.
        """
        rule = self._rule
        if rule is None or not rule.takes(call):
            return None
        if self._is_ready(rule.model):
            return rule.model
        is_new = self._tried_beside is not self._host.champion  # its base may be the canary
        is_due = is_new or self._clock() - self._tried_s > _RETRY_S
        if is_due and (self._loading is None or self._loading.done()):
            self._loading, self._is_awaited = asyncio.ensure_future(self._try(rule.model)), is_new
        if self._loading is not None and self._is_awaited:
            await asyncio.shield(self._loading)
        return rule.model if self._is_ready(rule.model) else None

    def _is_ready(self, name: str) -> bool:
        try:
            return self._host.ready(name)
        except CANNOT_SERVE:  # the reason is logged when it is loaded
            return False

    async def _try(self, name: str) -> None:
        try:
            await self._load(name)
        except CANNOT_SERVE as error:
            log.error("the canary's users get the champion: %s: %s: %s", name, type(error).__name__, error)
        finally:
            self._tried_s, self._tried_beside = self._clock(), self._host.champion
