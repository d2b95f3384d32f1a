"""What every engine replica last said of itself, kept by the ingress.

Of several replicas each takes as many calls at once as it has slots, so that what waits goes to the first
that is free. A question about health would wait behind the answers, just when a balancer or Prometheus most
wants to know. So nobody is asked: replicas say how they are every `SAY_S` seconds, and the ingress reads it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serving.calls import Health, ModelCard, Unavailable
from serving.http.metrics import added

log = logging.getLogger(__name__)

SAY_S = 0.5
MAX_AGE_S = 5.0
"""A replica that has been silent for so long is counted as gone."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    health: Health
    models: list[ModelCard]
    metrics: str
    """Prometheus text."""


class Board:
    """The states of the replicas that spoke within the last `max_age_s` seconds."""

    def __init__(self, max_age_s: float = MAX_AGE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._said: dict[str, tuple[float, ReplicaState]] = {}
        self._models: list[ModelCard] | None = None

    def put(self, replica: str, state: ReplicaState) -> None:
        self._said.pop(replica, None)  # the newest is the last
        self._said[replica] = (self._clock(), state)
        self._models = state.models

    def states(self) -> list[ReplicaState]:
        """The oldest word first."""
        now_s = self._clock()
        self._said = {name: said for name, said in self._said.items() if now_s - said[0] <= self._max_age_s}
        return [state for _, state in self._said.values()]

    def health(self) -> Health:
        """Ready if a replica is."""
        states = self.states()
        if not states:
            return Health(False, None, "no engine answers")
        return next((state.health for state in states if state.health.ready), states[-1].health)

    def models(self) -> list[ModelCard]:
        """The last word of any, however long ago. Raises Unavailable before the first."""
        if self._models is None:
            raise Unavailable
        return self._models

    def metrics(self) -> str:
        """Of all replicas, each under its name."""
        texts = [state.metrics for state in self.states()]
        return added([*texts, replicas_gauge(len(texts))])


async def keep_saying(
    look: Callable[[], Awaitable[ReplicaState]],
    send: Callable[[ReplicaState], Awaitable[object]],
    *,
    until: threading.Event,
    every_s: float = SAY_S,
) -> None:
    """Has every ingress know, and tries again whatever goes wrong: who is silent counts as gone."""
    while not until.is_set():
        try:
            await send(await look())
        except Exception as error:  # of the registry, the engine, or Serve
            log.warning("not said how this replica is: %s: %s", type(error).__name__, error)
        await asyncio.sleep(every_s)


def replicas_gauge(count: int) -> str:
    return f"# TYPE serving_replicas gauge\nserving_replicas {count}"
