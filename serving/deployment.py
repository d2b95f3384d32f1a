"""The Serve application: an ingress that speaks HTTP, and engine replicas that own cores and a model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serving.answering import HostBackend
from serving.calls import Call, Event, Failed, Health, ModelCard
from serving.engine import EngineSettings
from serving.engine.errors import EngineError
from serving.host import ModelHost, NotReady
from serving.http.app import create_app
from serving.registry import Registry, RegistryError
from serving.settings import GateSettings, ServingSettings

log = logging.getLogger(__name__)

_OVERLOADED: list[Event] = [Failed(429, "too many requests are waiting: try again later", "overloaded")]
_UNAVAILABLE: list[Event] = [Failed(503, "no model is ready to answer: try again later", "unavailable")]


class EngineReplica:
    """Follows the registry. Without a sound champion at the start it waits for one, and answers 503 meanwhile."""

    def __init__(self, settings: dict[str, Any]) -> None:
        _log_with_serve()
        self._settings = ServingSettings.model_validate(settings)
        registry = Registry(self._settings.registry_path)
        assert self._settings.engine is not None
        self._host = ModelHost(registry, self._settings.engine, max_models=self._settings.max_loaded_models)
        self._backend = HostBackend(self._host, registry)
        self._registry = registry
        self._stop = threading.Event()
        self._follow()
        threading.Thread(target=self._watch, name="watch-registry", daemon=True).start()

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        async with contextlib.aclosing(self._backend.generate(call)) as bundles:
            async for events in bundles:
                yield events

    async def models(self) -> list[ModelCard]:
        return await self._backend.models()

    async def health(self) -> Health:
        return await self._backend.health()

    async def metrics(self) -> str:
        return await self._backend.metrics()

    async def reconfigure(self, _: Any) -> None:
        """Serve calls it when `user_config` changes: a way to have the registry looked at now."""
        await asyncio.to_thread(self._follow)

    def __del__(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()
            self._host.close()

    def _watch(self) -> None:
        seen = _stamp(self._registry)
        while not self._stop.wait(self._settings.watch_s):
            stamp = _stamp(self._registry)
            if stamp != seen or self._host.champion is None:
                seen = stamp
                self._follow()

    def _follow(self) -> None:
        try:
            self._host.follow()
        except (RegistryError, EngineError, NotReady) as error:
            log.error("the model stays as it is: %s", error)


class HandleBackend:
    """A `serving.calls.Backend` over a handle of EngineReplica."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._generate = handle.options(method_name="generate", stream=True)

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        response = self._generate.remote(call)
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

    async def models(self) -> list[ModelCard]:
        cards: list[ModelCard] = await self._handle.models.remote()
        return cards

    async def health(self) -> Health:
        try:
            health: Health = await self._handle.health.remote()
        except (RayError, RayServeException) as error:
            return Health(False, None, f"the engine does not answer: {type(error).__name__}")
        return health

    async def metrics(self) -> str:
        text: str = await self._handle.metrics.remote()
        return text


class Ingress:
    """Serve builds the web application after the constructor: it needs the handle."""

    def __init__(self, engines: DeploymentHandle, settings: dict[str, Any], gate: dict[str, Any]) -> None:
        _log_with_serve()
        self._backend = HandleBackend(engines)
        self._settings = ServingSettings.model_validate(settings)
        self._gate = GateSettings.model_validate(gate)

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._backend, self._settings, gate=self._gate, capacity=capacity(self._settings))


def application(settings: ServingSettings, gate: GateSettings) -> serve.Application:
    """Both deployments, bound. Every limit that Serve leaves open by default is set."""
    engine = settings.engine or default_engine()
    engine = engine.model_copy(update={"max_queued": max(1, settings.max_queued)})
    settings = settings.model_copy(update={"engine": engine, "registry": str(settings.registry_path)})
    plain = settings.model_dump()
    per_replica = replica_capacity(settings)
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        max_ongoing_requests=per_replica,
        max_queued_requests=settings.max_queued,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        ray_actor_options={"num_cpus": engine.cores},
        **_scaling(settings, num_slots(engine)),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=4 * capacity(settings) + 64,
        max_queued_requests=64,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(engines.bind(plain), plain, gate.model_dump())


def default_engine() -> EngineSettings:
    """All physical cores that this process may use."""
    from serving.engine.topology import usable_cores

    cores = usable_cores()
    count = len(cores) if cores else os.cpu_count() or 1
    return EngineSettings(cores=count)


def num_slots(engine: EngineSettings) -> int:
    """Answers that one replica writes at once."""
    lanes = engine.cores if engine.lanes == "auto" else engine.lanes
    return lanes * (16 if engine.slots == "auto" else engine.slots)


def replica_capacity(settings: ServingSettings) -> int:
    """Answers that run in one replica, or wait in it."""
    assert settings.engine is not None
    return num_slots(settings.engine) + settings.max_queued


def capacity(settings: ServingSettings) -> int:
    """Answers that one ingress process lets in."""
    return replica_capacity(settings) * (settings.max_replicas or settings.replicas)


def _scaling(settings: ServingSettings, slots: int) -> dict[str, Any]:
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": max(1, slots * 3 // 4),
        }
    }


def _stamp(registry: Registry) -> tuple[int, int, int] | None:
    try:
        found = os.stat(registry.file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _log_with_serve() -> None:
    """Our lines go where Serve's go: the replica's log file and its standard error."""
    ours, serves = logging.getLogger("serving"), logging.getLogger("ray.serve")
    ours.setLevel(logging.INFO)
    ours.handlers = list(serves.handlers)
    ours.propagate = False
