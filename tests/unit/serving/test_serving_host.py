"""The model host and its answers, over an engine that is a few lines of Python."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from serving_fakes import FakeEngine, call, collect, promote

from serving.answering import HostBackend
from serving.calls import Call, Ended, Failed, Started, Text
from serving.host import ModelHost, NotReady
from serving.names import UnknownModel, cards
from serving.registry import Registry, RegistryError


def test_following_the_registry(registry: Registry, host: ModelHost, opened: list[FakeEngine]) -> None:
    with pytest.raises(NotReady, match="no champion"):
        host.follow()
    with pytest.raises(NotReady):
        host.enter(None)
    first = promote(registry, "one")
    assert host.follow()
    assert not host.follow()
    assert [model.sha256 for model in host.loaded] == [first]
    second = promote(registry, "two")
    assert host.follow()
    assert [model.sha256 for model in host.loaded] == [second]
    assert opened[0].closed.wait(5)
    assert host.num_swaps == 1


def test_a_call_keeps_its_model_through_a_swap(
    registry: Registry, host: ModelHost, opened: list[FakeEngine]
) -> None:
    first = promote(registry, "one")
    host.follow()
    model, other = host.enter(None), host.enter("champion")
    promote(registry, "two")
    host.follow()
    assert model.sha256 == first
    host.leave(other)
    assert not opened[0].closed.is_set()
    host.leave(model)
    assert opened[0].closed.wait(5)


@pytest.mark.parametrize("word", ["bad", ""])
def test_an_unfit_champion_leaves_the_old_one(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], word: str
) -> None:
    first = promote(registry, "one")
    host.follow()
    promote(registry, word)
    with pytest.raises(Exception, match=r"corrupt|does not answer"):
        host.follow()
    assert host.champion is not None
    assert host.champion.sha256 == first
    assert host.last_error is not None
    assert not opened[0].closed.is_set()
    registry.rollback()
    assert not host.follow()
    assert host.last_error is None


def test_a_changed_file_is_not_loaded(registry: Registry, host: ModelHost) -> None:
    sha256 = promote(registry, "one")
    (registry.root / "models" / sha256 / "model.gguf").write_text("0ne")
    with pytest.raises(RegistryError, match="sha256"):
        host.follow()


def test_models_by_name(registry: Registry, host: ModelHost, opened: list[FakeEngine]) -> None:
    first = promote(registry, "one")
    second = promote(registry, "two", base="zero")
    host.follow()
    names = [card.name for card in cards(registry)]
    assert names == ["champion", "base", f"local@{second[:8]}", f"local@{first[:8]}"]
    with pytest.raises(UnknownModel):
        host.enter("none")
    base = host.enter("base")
    assert host.ready("base")
    host.leave(base)
    earlier = host.enter(f"local@{first[:8]}")
    assert [model.sha256 for model in host.loaded] == [second, first], "room for one besides the champion"
    assert next(engine for engine in opened if engine.word == "zero").closed.wait(5)
    assert host.enter(names[2]).sha256 == second
    host.leave(earlier)


# Answers.


def test_whole_and_streamed_answers_agree(
    registry: Registry, host: ModelHost, opened: list[FakeEngine]
) -> None:
    sha256 = promote(registry, "one")
    host.follow()
    backend = HostBackend(host, registry)
    for stream in (False, True):
        events = asyncio.run(collect(backend, call(stream=stream, num_choices=2)))
        assert events[0] == Started(f"local@{sha256[:8]}", sha256, 3)
        for choice in (0, 1):
            texts = [each.text for each in events if isinstance(each, Text) and each.choice == choice]
            assert "".join(texts) == "one"
        assert sorted(each.choice for each in events if isinstance(each, Ended)) == [0, 1]
    requests = [stream.request for stream in opened[0].streams if stream.request.id != "smoke"]
    assert [request.sampling.seed for request in requests] == [7, 8, 7, 8]
    assert {request.sampling.max_tokens for request in requests} == {29}, "what the context holds"
    assert host.loaded[0].num_calls == 0


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        (call(model="none"), 404, "model_not_found"),
        (call(messages=None, prompts=("x" * 50,)), 400, "context_length_exceeded"),
        (call(messages=None, prompts=("x", "y" * 50)), 400, "context_length_exceeded"),
    ],
)
def test_refusals(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], asked: Call, status: int, code: str
) -> None:
    promote(registry, "one")
    host.follow()
    (failed,) = asyncio.run(collect(HostBackend(host, registry), asked))
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (status, code)
    assert failed.param == ("model" if status == 404 else "prompt")
    assert all(stream.done for stream in opened[0].streams), "all or none: nothing is left running"
    assert host.loaded[0].num_calls == 0


def test_without_a_champion_calls_are_503(registry: Registry, host: ModelHost) -> None:
    backend = HostBackend(host, registry)
    (failed,) = asyncio.run(collect(backend, call()))
    assert isinstance(failed, Failed)
    assert failed.status == 503
    assert not asyncio.run(backend.health()).ready


@pytest.mark.parametrize("stream", [False, True])
def test_closing_an_answer_cancels_it(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], stream: bool
) -> None:
    promote(registry, "one")
    host.follow()
    opened[0].hold = True

    async def run() -> None:
        backend = HostBackend(host, registry)
        task = asyncio.ensure_future(collect(backend, call(stream=stream)))
        async with asyncio.timeout(5):
            while len(opened[0].streams) < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            while host.loaded[0].num_calls:
                await asyncio.sleep(0.001)

    asyncio.run(run())
    answer = opened[0].streams[-1]
    assert answer.cancelled
    assert answer.result(0).finish_reason == "cancelled"


def test_a_deadline_of_the_engine_is_a_timeout(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, "one")
    host.follow()
    monkeypatch.setattr(opened[0], "end", lambda stream, _: FakeEngine.end(opened[0], stream, "timeout"))
    events = asyncio.run(collect(HostBackend(host, registry), call(stream=True)))
    assert isinstance(events[-1], Failed)
    assert events[-1].status == 504


def test_while_the_registry_cannot_be_read_its_models_are_those_of_before(
    registry: Registry, host: ModelHost
) -> None:
    promote(registry, "one")
    host.follow()
    backend = HostBackend(host, registry)
    known = asyncio.run(backend.models())
    registry.file.write_text("{")
    assert asyncio.run(backend.models()) == known != []
