"""A share of the users gets a second model, and never less than the champion."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from serving_fakes import FakeEngine, call, collect, promote

from serving import canarying
from serving.answering import HostBackend
from serving.calls import Started
from serving.canary import Canary, UserConfig
from serving.engine import EngineError, RequestError
from serving.host import ModelHost
from serving.registry import Registry

ALL_TO_THE_BASE = Canary(model="base", share=1.0)


async def model_of(backend: HostBackend, **fields: Any) -> str:
    started = (await collect(backend, call(**fields)))[0]
    assert isinstance(started, Started), started
    return started.sha256


async def settled(backend: HostBackend) -> None:
    """The canary is no longer being loaded."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        await task


def test_a_canary_gets_its_share_of_the_users_and_keeps_them(registry: Registry, host: ModelHost) -> None:
    first = promote(registry, "one")
    second = promote(registry, "two")
    host.follow()
    backend = HostBackend(host, registry)

    async def run() -> None:
        users = [f"user {number}" for number in range(200)]
        await backend.set_canary(Canary(model=f"local@{first[:8]}", share=0.25))
        models = [await model_of(backend, user=user) for user in users]
        assert 30 <= models.count(first) <= 70
        assert models == [await model_of(backend, user=user) for user in users]
        taken = users[models.index(first)]
        named = await model_of(backend, user=taken, model=f"local@{second[:8]}")
        assert named == second, "who names a model gets it"
        await backend.set_canary(Canary(model="none", share=1.0))
        assert await model_of(backend, user=taken) == second, "a canary that cannot be served gets no share"

    asyncio.run(run())


def test_a_canary_whose_name_is_gone_leaves_its_users_the_champion(
    registry: Registry, host: ModelHost
) -> None:
    promote(registry, "one", base="zero")
    host.follow()
    backend = HostBackend(host, registry)

    async def run() -> None:
        await backend.set_canary(ALL_TO_THE_BASE)
        canary = await model_of(backend)
        champion = promote(registry, "two")
        host.follow()
        assert canary != champion
        assert await model_of(backend) == await model_of(backend, model="champion") == champion
        await settled(backend)
        promote(registry, "three", base="zero")
        host.follow()
        assert await model_of(backend) == canary, "it is still loaded, and has its name again"

    asyncio.run(run())


def test_a_canary_that_cannot_be_loaded_yet_is_loaded_later(registry: Registry, host: ModelHost) -> None:
    backend = HostBackend(host, registry)

    async def run() -> None:
        await backend.set_canary(ALL_TO_THE_BASE)
        champion = promote(registry, "one", base="zero")
        host.follow()
        first = await model_of(backend)
        assert first != champion, "a user stays with a model from the first answer"
        assert await model_of(backend) == first

    asyncio.run(run())


def dead(_: Any) -> Any:
    """What an engine that has failed does with a request."""
    raise EngineError("the engine has failed")


@pytest.mark.parametrize("stream", [False, True])
def test_a_canary_whose_engine_dies_is_loaded_anew(
    registry: Registry,
    host: ModelHost,
    opened: list[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    champion = promote(registry, "one", base="zero")
    host.follow()
    backend = HostBackend(host, registry)

    async def run() -> None:
        await backend.set_canary(ALL_TO_THE_BASE)
        monkeypatch.setattr(opened[1], "submit", dead)
        assert await model_of(backend, stream=stream) == champion
        assert backend.failure is None
        assert await asyncio.to_thread(opened[1].closed.wait, 5)
        for _ in range(3):
            assert await model_of(backend, stream=stream) == champion
            await settled(backend)
        assert len(opened) == 2, "not at every call"
        monkeypatch.setattr(canarying, "_RETRY_S", 0.0)
        assert await model_of(backend, stream=stream) == champion
        await settled(backend)
        assert await model_of(backend, stream=stream) != champion

    asyncio.run(run())


def test_what_the_canary_refuses_stays_refused(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, "one", base="zero")
    host.follow()
    backend = HostBackend(host, registry)

    def full(_: Any) -> Any:
        raise RequestError("queue_full", "full")

    async def run() -> None:
        await backend.set_canary(ALL_TO_THE_BASE)
        monkeypatch.setattr(opened[1], "submit", full)
        (failed,) = await collect(backend, call())
        assert failed.status == 429
        assert len(host.loaded) == 2

    asyncio.run(run())


def test_an_engine_that_dies_under_its_name_is_loaded_anew(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = promote(registry, "one", base="zero")
    host.follow()
    backend = HostBackend(host, registry)

    async def run() -> None:
        base = await model_of(backend, model="base")
        monkeypatch.setattr(opened[1], "submit", dead)
        (failed,) = await collect(backend, call(model="base"))
        assert failed.status == 503
        assert await model_of(backend, model="base") == base != champion

    asyncio.run(run())


def test_canary_and_shadow_have_room_beside_the_champion(
    registry: Registry, host: ModelHost, opened: list[FakeEngine]
) -> None:
    first = promote(registry, "one")
    promote(registry, "two", base="zero")
    host.follow()
    names = ("base", f"local@{first[:8]}")
    config = UserConfig.model_validate(
        {"canary": {"model": names[0], "share": 0.5}, "shadow": {"model": names[1], "share": 0.5}}
    )
    host.make_room(len(config.models))
    for name in names * 3:
        host.leave(host.enter(name))
    assert len(opened) == 3
    host.make_room(0)
    third = promote(registry, "three", base="other")
    host.follow()
    host.leave(host.enter("base"))
    assert host.loaded[0].sha256 == third
    assert len(host.loaded) == 2


def test_a_canary_of_nobody_needs_no_room() -> None:
    assert UserConfig(canary=Canary(model="base", share=0)).models == set()
    assert UserConfig().models == set()
