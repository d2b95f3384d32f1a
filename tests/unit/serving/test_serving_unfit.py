"""Champions that cannot be loaded here: what is served in their place, and when they are tried again."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from serving_fakes import Clock, FakeEngine, call, collect, promote

from serving import following
from serving.answering import HostBackend
from serving.calls import Failed, Started
from serving.engine import Engine, EngineSettings, ModelLoadError
from serving.following import Follower, NotServable
from serving.host import ModelHost
from serving.names import UnknownModel
from serving.registry import Registry
from serving.shadow import Shadow


class Machine:
    """On which the models in `unfit` do not load; `tried` is what was opened, in order."""

    def __init__(self, *unfit: str) -> None:
        self.unfit = set(unfit)
        self.tried: list[str] = []
        self.during: Any = lambda word: None

    def open(self, path: Path, *_: Any) -> Engine:
        word = path.read_text()
        self.tried.append(word)
        self.during(word)
        if word in self.unfit:
            raise ModelLoadError(f"{path}: does not fit into memory")
        return cast("Engine", FakeEngine(path))

    def host(self, registry: Registry, clock: Clock) -> ModelHost:
        return ModelHost(registry, EngineSettings(pin=False), open_engine=self.open, clock=clock)


async def metric(host: ModelHost, registry: Registry, name: str) -> int:
    lines = (await HostBackend(host, registry).metrics()).splitlines()
    return next(int(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def test_a_new_replica_serves_the_newest_sound_champion_until_the_latest_loads(
    registry: Registry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first, _, _ = promote(registry, "one"), promote(registry, "two"), promote(registry, "three")
    machine = Machine("two", "three")
    host = machine.host(registry, clock)
    follower = Follower(host, registry, every_s=60, clock=clock)
    follower.start()
    assert host.champion is not None
    assert host.champion.sha256 == first
    assert machine.tried == ["three", "two", "one"]
    assert "answers in place of" in caplog.text
    backend = HostBackend(host, registry)
    health = asyncio.run(backend.health())
    assert health.ready
    assert "not fit" in health.detail
    assert asyncio.run(metric(host, registry, "serving_champion_behind")) == 1
    (started, *_) = asyncio.run(collect(backend, call()))
    assert (started.model, started.sha256) == (f"local@{first[:8]}", first)  # type: ignore[union-attr]
    machine.unfit.clear()
    clock.now_s = 31
    follower.look()
    follower.stop()
    assert host.champion.name != f"local@{first[:8]}"
    assert (machine.tried[3:], host.last_error) == (["three"], None)
    assert asyncio.run(metric(host, registry, "serving_champion_behind")) == 0


def test_a_replica_that_can_serve_nothing_does_not_start(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve would take the working ones down for it."""
    monkeypatch.setattr(following, "_PATIENCE_S", 0.0)
    promote(registry, "one")
    promote(registry, "two")
    host = Machine("one", "two").host(registry, clock)
    with pytest.raises(NotServable, match="does not fit into memory"):
        Follower(host, registry, every_s=60).start()
    registry.file.write_text("{")
    with pytest.raises(NotServable, match="not a champion file"):
        Follower(host, registry, every_s=60).start()


def test_a_replica_waits_for_the_first_champion(registry: Registry, clock: Clock) -> None:
    host = Machine().host(registry, clock)
    follower = Follower(host, registry, every_s=60)
    follower.start()
    promote(registry, "one")
    follower.look()
    follower.stop()
    assert host.champion is not None


def test_a_champion_that_is_taken_back_while_it_loads_is_not_served(registry: Registry, clock: Clock) -> None:
    first = promote(registry, "one")
    machine = Machine()
    host = machine.host(registry, clock)
    host.follow()
    promote(registry, "two")
    machine.during = lambda word: registry.rollback() if word == "two" else None
    assert not host.follow()
    assert host.champion is not None
    assert (host.champion.sha256, host.num_swaps) == (first, 0)
    assert [model.sha256 for model in host.loaded] == [first]
    assert machine.tried == ["one", "two"]


def test_a_model_that_does_not_load_is_tried_less_and_less_often_whoever_asks(
    registry: Registry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    promote(registry, "one", base="zero")
    machine = Machine("zero")
    host = machine.host(registry, clock)
    host.follow()
    backend = HostBackend(host, registry)
    backend.shadower.rule = Shadow(model="base", share=1.0)

    async def ask() -> None:
        for model in (None, "base") * 10:
            (first, *_) = await collect(backend, call(model=model))
            assert isinstance(first, Started if model is None else Failed)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                await task

    with caplog.at_level(logging.ERROR, "serving.shadowing"):
        for at_s, attempts in ((0, 1), (29, 1), (31, 2), (90, 2), (92, 3), (211, 3), (213, 4)):
            clock.now_s = at_s
            asyncio.run(ask())
            assert machine.tried == ["one", *["zero"] * attempts], at_s
    assert len([each for each in caplog.records if each.name == "serving.shadowing"]) <= 4
    promote(registry, "zero")
    machine.unfit.clear()
    assert host.follow(), "promoted, it is tried at once"


def test_answers_do_not_wait_for_a_registry_that_hangs(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read last is enough to tell the models, and to find those that are loaded."""
    promote(registry, "one", base="zero")
    host = Machine().host(registry, clock)
    host.follow()
    host.leave(host.enter("base"))
    backend = HostBackend(host, registry)

    def hangs(*_: Any) -> Any:
        pytest.fail("the registry was asked")

    for name in ("champion", "history", "renew", "rollbacks"):
        monkeypatch.setattr(registry, name, hangs)
    registry.file.unlink()

    async def run() -> None:
        assert [card.name for card in await backend.models()][:2] == ["champion", "base"]
        assert isinstance((await collect(backend, call(model="base")))[0], Started)
        (failed,) = await collect(backend, call(model="none"))
        assert failed.status == 404  # type: ignore[union-attr]
        with pytest.raises(UnknownModel):
            host.ready("none")

    asyncio.run(run())
