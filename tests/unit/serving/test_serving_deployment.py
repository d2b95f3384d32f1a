"""Ingress and replica without Serve: a handle that is a few lines of Python, an engine that is some more."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from serving_fakes import FakeEngine, call, promote

from serving import deployment
from serving.calls import Health, ModelCard, Started, Unavailable
from serving.deployment import EngineReplica, HandleBackend
from serving.engine import Engine, EngineSettings, ModelLoadError
from serving.following import NotServable
from serving.host import ModelHost
from serving.registry import Registry
from serving.settings import GateSettings, ServingSettings
from serving.sizing import completed

SILENT = "the engine does not answer yet: it starts, or hangs"
CARDS = [ModelCard("champion", "ab" * 32, "local", 0)]


class Handle:
    """Its replica answers, or fails with `error`."""

    error: Exception | None = None

    @property
    def models(self) -> Handle:
        return self

    def options(self, **_: Any) -> Handle:
        return self

    async def remote(self) -> list[ModelCard]:
        if self.error is not None:
            raise self.error
        return CARDS


@pytest.mark.parametrize(
    "error", [RayActorError(), BackPressureError(num_queued_requests=1, max_queued_requests=1)]
)
def test_models_of_a_replica_that_is_full_or_dead_are_those_of_before(error: Exception) -> None:
    handle = Handle()
    backend = HandleBackend(cast("DeploymentHandle", handle))

    async def run() -> None:
        handle.error = error
        with pytest.raises(Unavailable):
            await backend.models()
        handle.error = None
        assert await backend.models() == CARDS
        handle.error = error
        assert await backend.models() == CARDS

    asyncio.run(run())


class StartingHandle(Handle):
    """Its replica answers once it has started."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.num_calls = 0

    @property
    def health(self) -> StartingHandle:
        return self

    async def remote(self) -> Any:
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        await self.started.wait()
        return Health(True, "ab" * 32, "ok")


def test_who_asks_for_health_while_a_replica_starts_is_told_so_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "_START_S", 0.01)
    monkeypatch.setattr(deployment, "_PROBE_S", 60)

    async def run() -> None:
        handle = StartingHandle()
        backend = HandleBackend(cast("DeploymentHandle", handle))
        for _ in range(3):
            state = await backend.health()
            assert (state.ready, state.detail) == (False, SILENT)
        assert handle.num_calls == 1, "a call that waits is not made again"
        handle.started.set()
        async with asyncio.timeout(5):
            while not (await backend.health()).ready:
                await asyncio.sleep(0)
        handle.started.clear()
        before, asking = handle.num_calls, asyncio.ensure_future(backend.health())
        monkeypatch.setattr(deployment, "_START_S", 0.0)
        while handle.num_calls == before:
            await asyncio.sleep(0)
        assert not (await asyncio.wait({asking}, timeout=0.05))[0], "one that has answered before gets longer"
        handle.started.set()
        assert (await asking).ready
        handle.started.clear()
        monkeypatch.setattr(deployment, "_PROBE_S", 0.01)
        before = handle.num_calls
        for _ in range(2):
            assert (await backend.health()).detail == SILENT
        assert handle.num_calls == before + 2, "a call that is never answered holds up no later one"
        handle.started.set()
        handle.error = BackPressureError(num_queued_requests=1, max_queued_requests=1)
        assert (await backend.health()).ready, "full, and healthy"
        handle.error = RayActorError()
        assert "RayActorError" in (await backend.health()).detail

    asyncio.run(run())


def test_a_replica_serves_what_is_promoted_and_its_canary(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = functools.partial(ModelHost, open_engine=lambda path, *_: cast("Engine", FakeEngine(path)))
    monkeypatch.setattr("serving.deployment.ModelHost", opened)
    monkeypatch.setattr("serving.deployment._log_with_serve", lambda: None)
    me = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr("serving.deployment.serve.get_replica_context", lambda: me)
    settings = ServingSettings(
        registry=str(registry.root), engine=EngineSettings(pin=False), watch_s=0.001, max_loaded_models=2
    )

    async def run() -> None:
        replica = EngineReplica(settings.model_dump())
        both = {"canary": {"model": "base", "share": 1.0}, "shadow": {"model": "base", "share": 0.5}}
        await replica.reconfigure(both)
        assert not (await replica.health()).ready
        champion = promote(registry, "one", base="zero")
        async with asyncio.timeout(5):
            while not (await replica.health()).ready:
                await asyncio.sleep(0.001)
        assert (await replica.health()).model_sha256 == champion
        async with asyncio.timeout(5):
            while (started := await first_event(replica)).sha256 == champion:
                await asyncio.sleep(0.001)
        assert started.model == "base"
        lines = (await replica.metrics()).splitlines()
        assert f'serving_champion_info{{sha256="{champion}",replica="r1"}} 1' in lines
        assert all('replica="r1"' in line for line in lines if not line.startswith("#"))
        replica.__del__()

    asyncio.run(run())


def test_a_replica_that_can_serve_nothing_does_not_come_up(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that Serve, which looks at nothing else, does not put it in the place of one that answers."""

    def open_engine(path: Path, *_: Any) -> Engine:
        if path.read_text() != "one":
            raise ModelLoadError(f"{path}: does not fit into memory")
        return cast("Engine", FakeEngine(path))

    monkeypatch.setattr("serving.deployment.ModelHost", functools.partial(ModelHost, open_engine=open_engine))
    monkeypatch.setattr("serving.deployment._log_with_serve", lambda: None)
    monkeypatch.setattr("serving.following._PATIENCE_S", 0.0)
    settings = ServingSettings(registry=str(registry.root), engine=EngineSettings(pin=False))
    promote(registry, "zero")
    with pytest.raises(NotServable, match="does not fit"):
        EngineReplica(settings.model_dump())
    sound = promote(registry, "one")
    promote(registry, "two")
    replica = EngineReplica(settings.model_dump())
    assert asyncio.run(first_event(replica)).sha256 == sound
    replica.check_health()
    replica.__del__()


def test_a_replica_knows_what_nobody_has_set() -> None:
    for engine, is_set in ((None, False), ({"cores": 1, "context_tokens": 2048}, True)):
        settings = ServingSettings.model_validate({"engine": engine})
        bound: Any = deployment.application(settings, GateSettings())
        plain = bound._bound_deployment.init_args[1]
        seen = ServingSettings.model_validate(plain)
        assert seen.engine is not None
        assert ("context_tokens" in seen.engine.model_fields_set) == is_set
        assert seen == completed(settings)


async def first_event(replica: EngineReplica) -> Started:
    events = [event async for events in replica.generate(call()) for event in events]
    assert isinstance(events[0], Started)
    return events[0]
