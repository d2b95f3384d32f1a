"""The model host and its answers, over an engine that is a few lines of Python."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from serving_fakes import FakeEngine, call, collect, promote

from serving.answering import HostBackend
from serving.calls import Call, Ended, Failed, Started, Text
from serving.engine import Engine, EngineError, EngineSettings, Stream
from serving.engine.types import Result
from serving.files import sha256_of
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
    names = [card.name for card in cards(registry.history())]
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


def test_a_model_is_not_thrown_out_by_the_call_that_loads_it(
    registry: Registry, host: ModelHost, opened: list[FakeEngine]
) -> None:
    first = promote(registry, "one")
    promote(registry, "two", base="zero")
    host.follow()
    base = host.enter("base")
    overlapping = [host.enter(f"local@{first[:8]}") for _ in range(4)]
    assert [engine.word for engine in opened] == ["two", "zero", "one"], "one load for all"
    assert not opened[1].closed.is_set(), "the base still answers"
    host.leave(base)
    assert opened[1].closed.wait(5)
    for model in overlapping:
        host.leave(model)
    assert not opened[2].closed.is_set()


def test_of_busy_models_the_one_that_was_used_last_stays(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter(range(100))
    monkeypatch.setattr("serving.host.time", SimpleNamespace(monotonic=lambda: next(now_s)))
    first, second = promote(registry, "one"), promote(registry, "two")
    promote(registry, "three", base="zero")
    host.follow()
    host.make_room(2)
    for name in ("base", f"local@{first[:8]}", "base", f"local@{second[:8]}"):
        host.enter(name)
    assert [model.name for model in host.loaded[1:]] == ["base", f"local@{second[:8]}"]


def test_a_model_that_is_gone_again_is_not_loaded_where_calls_are_answered(
    registry: Registry, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def open_engine(path: Path, *_: Any) -> Engine:
        threads.append(threading.current_thread())
        return cast("Engine", FakeEngine(path))

    host = ModelHost(registry, EngineSettings(pin=False), open_engine=open_engine)
    promote(registry, "one", base="zero")
    host.follow()
    monkeypatch.setattr(host, "ready", lambda _: True)  # as it was when it was asked
    assert isinstance(asyncio.run(collect(HostBackend(host, registry), call(model="base")))[0], Started)
    assert threads[1] is not threading.current_thread()


def test_a_model_that_is_loaded_by_name_becomes_champion_as_it_is(
    registry: Registry, host: ModelHost, opened: list[FakeEngine]
) -> None:
    promote(registry, "one", base="zero")
    host.follow()
    model = host.enter("base")
    sha256 = promote(registry, "zero")
    assert host.follow()
    assert [engine.word for engine in opened] == ["one", "zero"]
    assert host.loaded == [model]
    assert (model.name, host.enter(None)) == (f"local@{sha256[:8]}", model)
    assert opened[0].closed.wait(5)


def test_a_loaded_model_that_has_failed_is_loaded_anew_as_champion(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, "one", base="zero")
    host.follow()
    host.leave(host.enter("base"))
    file = registry.root.parent / "zero.gguf"
    sha256 = sha256_of(file)
    row = {"prompt": "x", "tokens": [1] * 4}
    registry.promote(
        file, sha256=sha256, run="local", report=file, expected=json.dumps({"answers": [row]}).encode()
    )

    def fails(_: Any) -> Any:
        raise EngineError("the engine has failed")

    monkeypatch.setattr(opened[1], "submit", fails)
    assert host.follow()
    assert [engine.word for engine in opened] == ["one", "zero", "zero"]
    assert [loaded.sha256 for loaded in host.loaded] == [sha256]
    assert opened[1].closed.wait(5)


@pytest.mark.parametrize(
    ("settings", "trained", "context"),
    [({}, 512, 512), ({}, 8192, 2048), ({}, None, 2048), ({"context_tokens": 1024}, 512, 1024)],
)
def test_the_context_is_what_a_model_was_trained_for_unless_it_is_set(
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, int],
    trained: int | None,
    context: int,
) -> None:
    contexts = []

    def open_engine(path: Path, settings: EngineSettings, _: Any) -> Engine:
        contexts.append(settings.context_tokens)
        return cast("Engine", FakeEngine(path))

    monkeypatch.setattr("serving.loading.trained_tokens", lambda _: trained)
    promote(registry, "one")
    ModelHost(registry, EngineSettings(pin=False, **settings), open_engine=open_engine).follow()
    assert contexts == [context]


def test_counters_of_a_replica_never_fall(
    registry: Registry, host: ModelHost, opened: list[FakeEngine]
) -> None:
    def counted() -> tuple[int, int]:
        values = dict(line.split(" ") for line in host.metrics().splitlines() if line[0] != "#")
        return int(values["engine_requests_done_total"]), int(values["engine_num_slots"])

    promote(registry, "one", base="zero")
    host.follow()
    assert counted() == (1, 4)
    base = host.enter("base")
    assert counted() == (2, 8), "each has said something when it was loaded"
    promote(registry, "two")
    host.follow()
    assert counted() == (3, 8)
    promote(registry, "three")
    host.follow()
    host.drop(base)
    assert counted() == (4, 8), "one that was replaced counts while it answers"
    host.leave(base)
    assert counted() == (4, 4)
    assert opened[1].closed.wait(5)


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


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_prompt_that_is_only_scored_no_answer_comes_back(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], stream: bool
) -> None:
    sha256 = promote(registry, "one")
    host.follow()
    asked = call(messages=None, prompts=("ab", "c"), max_tokens=0, echo=True, stream=stream)
    events = asyncio.run(collect(HostBackend(host, registry), asked))
    assert events == [
        Started(f"local@{sha256[:8]}", sha256, 3),
        Text(0, "ab"),
        Ended(0, "length", 0, 1),
        Text(1, "c"),
        Ended(1, "length", 0, 1),
    ]
    assert opened[0].streams[-1].request.sampling.max_tokens == 1, "an engine writes one at least"


FAULTS = [
    ("bad_grammar", {}, 400, "response_format"),
    ("bad_grammar", {"must_call": True}, 400, "tools"),
    ("context_length_exceeded", {"messages": None, "prompts": ("x",)}, 400, "prompt"),
    ("unsupported", {}, 400, None),
    ("engine_failed", {}, 500, None),
    (None, {}, 500, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("code", "fields", "status", "param"), FAULTS, ids=range(len(FAULTS)))
def test_what_is_found_wrong_with_a_request_late_is_still_its_clients_fault(
    registry: Registry, host: ModelHost, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch,
    stream: bool, code: str | None, fields: dict[str, Any], status: int, param: str | None,
) -> None:  # fmt: skip
    promote(registry, "one")
    host.follow()

    def end(stream: Stream, _: Any) -> None:
        stream.finish(Result("c", "", (), "error", 3, 0, 0, 0.1, None, error="why", error_code=code))

    monkeypatch.setattr(opened[0], "end", end)
    failed = asyncio.run(collect(HostBackend(host, registry), call(stream=stream, **fields)))[-1]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code, failed.param) == (status, code or "engine_failed", param)
    assert (failed.message == "why") == (status == 400 and code != "unsupported")
