"""The Serve application: an ingress that speaks HTTP, and engine replicas that own cores and a model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serving.affinity import opening
from serving.answering import HostBackend
from serving.board import MAX_AGE_S, Board, ReplicaState, keep_saying, replicas_gauge
from serving.calls import Call, Event, Failed, Health, ModelCard, Unavailable
from serving.canary import UserConfig
from serving.deaths import EngineDeaths
from serving.following import Follower
from serving.host import ModelHost
from serving.http.app import create_app
from serving.http.metrics import added, labelled
from serving.registry import Registry
from serving.settings import GateSettings, ServingSettings
from serving.sizing import capacity, completed, num_replicas, num_slots, replica_capacity, scaling
from serving.taking_back import Taker

log = logging.getLogger(__name__)

_INGRESS = "ingress"
_NUM_PROBES = 16
"""Room for questions about health and models beside a full house."""
_PROBE_S = 4.0
"""A replica that takes longer to say what it has done is left out."""
_START_S = 0.5
"""How long a probe waits for a replica that has never answered: calls to it wait until it has started."""
_STICKY_ROUTER = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
)
_OVERLOADED: list[Event] = [Failed(429, "too many requests are waiting: try again later", "overloaded")]
_SILENT = Health(False, None, "the engine does not answer yet: it starts, or hangs")
_UNAVAILABLE: list[Event] = [Failed(503, "no model is ready to answer: try again later", "unavailable")]


class EngineReplica:
    """Follows the registry. Without a champion it waits for the first one, and answers 503 meanwhile.

    The constructor raises where there is one and nothing can be served.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        _log_with_serve()
        if hasattr(os, "nice") and os.nice(0) > 0:
            log.info("this replica runs at nice %d: whatever else the machine does goes first", os.nice(0))
        self._settings = ServingSettings.model_validate(settings)
        registry = Registry(self._settings.registry_path)
        assert self._settings.engine is not None
        rule, most = self._settings.rollback, self._settings.max_loaded_models
        deaths = None if rule is None else EngineDeaths()
        self._host = ModelHost(registry, self._settings.engine, max_models=most, deaths=deaths)
        self._taker = None if rule is None else Taker(self._host, registry, rule, deaths=deaths)
        self._backend = HostBackend(self._host, registry, self._taker)
        self._follower = Follower(self._host, registry, every_s=self._settings.watch_s)
        self._saying: asyncio.Task[None] | None = None
        if self._taker is not None:
            self._taker.start()
        self._follower.start()

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        async with contextlib.aclosing(self._backend.generate(call)) as bundles:
            async for events in bundles:
                yield events

    async def models(self) -> list[ModelCard]:
        return await self._backend.models()

    async def health(self) -> Health:
        return await self._backend.health()

    async def metrics(self) -> str:
        """With the replica's name: a sum over replicas would fall when one goes, as no counter may."""
        me = serve.get_replica_context().replica_id.unique_id
        return labelled(await self._backend.metrics(), "replica", me)

    def check_health(self) -> None:
        """Serve replaces a replica that raises here."""
        if self._backend.failure is not None:
            raise RuntimeError(self._backend.failure)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls it at the start and when only `user_config` has changed; requests go on meanwhile."""
        config = UserConfig.model_validate(user_config)
        self._host.make_room(len(config.models))
        await self._backend.set_canary(config.canary)
        self._backend.shadower.rule = config.shadow
        if self._saying is None and num_replicas(self._settings) > 1:
            self._saying = asyncio.create_task(self._say())

    async def _say(self) -> None:
        """Tells every ingress how this replica is: see `serving.board`."""
        me = serve.get_replica_context()
        ingress = serve.get_deployment_handle(_INGRESS, me.app_name)

        async def look() -> ReplicaState:
            return ReplicaState(await self.health(), await self.models(), await self.metrics())

        async def send(state: ReplicaState) -> None:
            await ingress.broadcast("say", me.replica_id.unique_id, state).results_async(timeout_s=MAX_AGE_S)

        await keep_saying(look, send, until=self._follower.stopped)

    def __del__(self) -> None:
        if hasattr(self, "_follower"):
            self._follower.stop()
            if self._taker is not None:
                self._taker.stop()
            self._host.close()


class HandleBackend:
    """A `serving.calls.Backend` over a handle of EngineReplica: one replica."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._generate = handle.options(method_name="generate", stream=True)
        self._health: Health | None = None
        self._asking: asyncio.Task[Health] | None = None
        self._cards: list[ModelCard] | None = None

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        async with contextlib.aclosing(_events(self._generate, call)) as bundles:
            async for events in bundles:
                yield events

    async def models(self) -> list[ModelCard]:
        """What the replica said last, while it is full or dead. Raises Unavailable."""
        try:
            cards: list[ModelCard] = await self._handle.models.remote()
        except (RayError, RayServeException) as error:
            log.warning("the replica does not say what its models are: %s", type(error).__name__)
            if self._cards is None:
                raise Unavailable from error
            return self._cards
        self._cards = cards
        return cards

    async def health(self) -> Health:
        """Who asks while others wait for an answer waits with them: no more than a moment at the start."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_health())
        await asyncio.wait({self._asking}, timeout=_START_S if self._health is None else None)
        return self._asking.result() if self._asking.done() else _SILENT

    async def _ask_health(self) -> Health:
        try:
            async with asyncio.timeout(_PROBE_S):
                self._health = await self._handle.health.remote()
        except BackPressureError:
            log.warning("the replica is full: its health is what it was")
        except TimeoutError:
            return _SILENT
        except (RayError, RayServeException) as error:
            self._health = Health(False, None, f"the engine does not answer: {type(error).__name__}")
        return self._health or _SILENT

    async def metrics(self) -> str:
        found: list[Any] = []
        try:
            asked = self._handle.broadcast("metrics")
            found = await asked.results_async(timeout_s=_PROBE_S, return_exceptions=True)
        except (RayError, RayServeException, DeploymentUnavailableError, TimeoutError) as error:
            log.warning("the replica does not say what it has done: %s", type(error).__name__)
        texts = [text for text in found if isinstance(text, str)]
        return added([*texts, replicas_gauge(len(texts))])


class BoardBackend:
    """A `serving.calls.Backend` over several replicas, which say on the board how they are.

    The turns of a chat go to the replica that has its start in the cache.
    """

    def __init__(self, handle: DeploymentHandle, board: Board) -> None:
        self._generate = handle.options(method_name="generate", stream=True)
        self._board = board

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        async with contextlib.aclosing(
            _events(self._generate.options(session_id=opening(call)), call)
        ) as bundles:
            async for events in bundles:
                yield events

    async def models(self) -> list[ModelCard]:
        return self._board.models()

    async def health(self) -> Health:
        return self._board.health()

    async def metrics(self) -> str:
        return self._board.metrics()


async def _events(generate: DeploymentHandle, call: Call) -> AsyncGenerator[list[Event], None]:
    """What a replica answers; a call that no replica takes or ends is one failed event."""
    response = generate.remote(call)
    try:
        async for events in response:
            yield events
    except BackPressureError:
        yield _OVERLOADED
    except (RayError, RayServeException, DeploymentUnavailableError) as error:
        log.error("call %s: %s: %s", call.id, type(error).__name__, str(error).splitlines()[0][:300])
        yield _UNAVAILABLE
    finally:
        response.cancel()


class Ingress:
    """Serve builds the web application after the constructor: it needs the handle."""

    def __init__(self, engines: DeploymentHandle, settings: dict[str, Any], gate: dict[str, Any]) -> None:
        _log_with_serve()
        self._settings = ServingSettings.model_validate(settings)
        self._board = Board()
        several = num_replicas(self._settings) > 1
        self._backend = BoardBackend(engines, self._board) if several else HandleBackend(engines)
        self._gate = GateSettings.model_validate(gate)

    def say(self, replica: str, state: ReplicaState) -> None:
        """A replica tells how it is."""
        self._board.put(replica, state)

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._backend, self._settings, gate=self._gate, capacity=capacity(self._settings))


def application(settings: ServingSettings, gate: GateSettings) -> serve.Application:
    """Both deployments, bound. Every limit that Serve leaves open by default is set."""
    settings = completed(settings)
    engine = settings.engine
    assert engine is not None
    # Without canary and shadow, or a change of them would restart the replicas; and who reads it knows what
    # nobody has set.
    plain = settings.model_dump(exclude={"canary", "shadow"}, exclude_unset=True)
    several = num_replicas(settings) > 1
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        # Of several replicas one that is full passes requests on to the next; a lone one queues them itself.
        max_ongoing_requests=num_slots(engine) if several else replica_capacity(settings) + _NUM_PROBES,
        request_router_config=_STICKY_ROUTER if several else RequestRouterConfig(),
        max_queued_requests=settings.max_queued,
        user_config=UserConfig(canary=settings.canary, shadow=settings.shadow).model_dump(),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        ray_actor_options={"num_cpus": engine.cores},
        **scaling(settings),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=_INGRESS,
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=4 * capacity(settings) + 64,
        max_queued_requests=64,
        max_surge_percent=100,  # the new ones answer before the old ones go: they take no cores
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(engines.bind(plain), plain, gate.model_dump())


def _log_with_serve() -> None:
    """Our lines go where Serve's go: the replica's log file and its standard error."""
    ours, serves = logging.getLogger("serving"), logging.getLogger("ray.serve")
    ours.setLevel(logging.INFO)
    ours.handlers = list(serves.handlers)
    ours.propagate = False
