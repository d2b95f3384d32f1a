"""Champions whose engines fail or whose processes die, and registries that are away when they have to go."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from serving_fakes import FailingEngine, FakeEngine, call, collect, promote

from serving import taking_back
from serving.answering import HostBackend
from serving.deaths import EngineDeaths
from serving.engine import Engine, EngineError, EngineSettings, ModelMismatch, Request, RequestError, Stream
from serving.engine.types import ENGINE_FAILED, Result
from serving.files import locked
from serving.host import ModelHost
from serving.probation import Probation, RollbackRule
from serving.registry import Registry, RegistryError
from serving.taking_back import Taker
from serving.waits import Waits, wait_s

PLAIN = Request("a", (1,))


class Watched:
    """A champion that says `bad` after one that says `good`, answered by a replica that takes it back."""

    def __init__(self, folder: Path, engine: type[FakeEngine] = FakeEngine, **rule: Any) -> None:
        self.registry = Registry(folder / "registry", lock_timeout_s=0.05)
        self.folder = folder
        self.good, self.bad = promote(self.registry, "good"), promote(self.registry, "bad")
        self.engine, self.rule = engine, rule
        self.restart()

    def restart(self) -> None:
        """As Serve does when the replica was unhealthy, or its process died."""
        rule = RollbackRule(**{"min_answers": 5, **self.rule})
        deaths = EngineDeaths(self.folder / "deaths")
        self.taker = Taker(self.host(), self.registry, rule, deaths=deaths)
        self.taker.start()
        self.taker._host.follow()
        self.backend = HostBackend(self.taker._host, self.registry, self.taker)

    def host(self) -> ModelHost:
        def open_engine(path: Path, *_: Any) -> Engine:
            return cast("Engine", self.engine(path))

        return ModelHost(
            self.registry,
            EngineSettings(pin=False),
            open_engine=open_engine,
            deaths=EngineDeaths(self.folder / "deaths"),
        )

    @property
    def champion(self) -> str:
        found = self.registry.champion()
        assert found is not None
        return found.sha256

    def ask(self, count: int = 1) -> None:
        async def run() -> None:
            for _ in range(count):
                await collect(self.backend, call())

        asyncio.run(run())

    def settle(self) -> None:
        """What is being taken back is."""
        for thread in threading.enumerate():
            if "_take_back" in thread.name:
                thread.join(10)


class DyingEngine(FakeEngine):
    """Takes nothing after the smoke test."""

    error: EngineError = EngineError("the engine has failed: a lane died")

    def submit(self, request: Request) -> Any:
        if request.id != "smoke" and self.word == "bad":
            raise self.error
        return super().submit(request)


class ManglingEngine(DyingEngine):
    error = ModelMismatch("its chat template fails")


class BrokenEngine(FakeEngine):
    """Fails under the first answer."""

    def end(self, stream: Any, reason: Any) -> None:
        if stream.request.id == "smoke" or self.word != "bad":
            super().end(stream, reason)
        else:
            why = "the engine has failed: out of memory"
            stream.finish(
                Result("c", "", (), "error", 3, 0, 0, 0.1, None, error=why, error_code=ENGINE_FAILED)
            )


@pytest.mark.parametrize("engine", [DyingEngine, BrokenEngine])
def test_an_engine_that_fails_ends_a_champion_at_once(tmp_path: Path, engine: type[FakeEngine]) -> None:
    watched = Watched(tmp_path, engine, min_answers=50)
    watched.ask()
    watched.settle()
    assert watched.champion == watched.good
    (row,) = watched.registry.rollbacks()
    assert row["reason"].startswith("its engine failed")
    watched.ask()
    assert watched.taker._host.champion is not None
    assert watched.taker._host.champion.sha256 == watched.good


def test_requests_that_a_champion_does_not_take_are_failures(tmp_path: Path) -> None:
    watched = Watched(tmp_path, ManglingEngine, min_answers=5)
    watched.ask(4)
    watched.settle()
    assert watched.champion == watched.bad
    watched.ask()
    watched.settle()
    assert watched.champion == watched.good
    assert watched.registry.rollbacks()[0]["reason"] == "5 of its first 5 answers failed"


def test_what_clients_are_refused_takes_no_champion_back(tmp_path: Path) -> None:
    class Refusing(DyingEngine):
        error = RequestError("queue_full", "full")

    watched = Watched(tmp_path, Refusing, min_answers=1)
    watched.ask(10)
    watched.settle()
    assert watched.champion == watched.bad


def test_a_replica_that_ends_first_leaves_the_next_one_to_take_the_champion_back(tmp_path: Path) -> None:
    watched = Watched(tmp_path, DyingEngine)
    with locked(watched.registry.root / ".lock", 1):
        watched.ask()
        watched.taker.stop()
        watched.settle()
    assert watched.champion == watched.bad
    watched.restart()
    assert watched.champion == watched.good
    assert watched.taker._host.champion is not None
    assert watched.taker._host.champion.sha256 == watched.good, "the other one is not even loaded"


def die(watched: Watched) -> None:
    """The kernel lets go of what a dead process has locked."""
    (stack,) = watched.taker._host._deaths._held.values()  # type: ignore[union-attr]
    held = stack.pop_all()
    marker = next((watched.folder / "deaths").glob("*.running"))
    kept = marker.read_bytes()
    held.close()
    marker.write_bytes(kept)


def test_the_second_process_that_dies_with_a_new_champion_ends_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for deaths in (1, 2):
        assert watched.champion == watched.bad
        die(watched)
        watched.restart()
        assert len(list((tmp_path / "deaths").glob("*.died"))) == deaths
    assert watched.champion == watched.good
    assert watched.registry.rollbacks()[0]["reason"] == "2 processes died with it on one node"


def test_processes_that_end_in_order_or_long_after_a_promotion_are_no_reason(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for _ in range(3):
        watched.taker._host.close()
        assert not list((tmp_path / "deaths").iterdir())
        watched.restart()
    third = promote(watched.registry, "third")
    watched.taker._host.follow()
    assert [path.name[:64] for path in (tmp_path / "deaths").iterdir()] == [third]
    deaths = EngineDeaths(tmp_path / "deaths")
    for _ in range(2):
        deaths.failed(watched.bad)
    assert deaths.reason(watched.bad, since_s=time.time() + 60) is None
    assert deaths.reason(watched.bad, since_s=time.time() - 60) == "its engine failed"
    assert deaths.reason(watched.good, since_s=0) is None


def test_processes_that_are_killed_at_once_count_as_one(tmp_path: Path) -> None:
    """A machine that goes down takes all of them along."""
    deaths, sha256 = EngineDeaths(tmp_path), "ab" * 32
    script = (
        "import pathlib, sys, time\n"
        "from serving.deaths import EngineDeaths\n"
        "deaths = EngineDeaths(pathlib.Path(sys.argv[1]))\n"
        "deaths.begin(sys.argv[2])\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    for kills, reason in ((2, None), (1, "2 processes died with it on one node")):
        command = [sys.executable, "-c", script, str(tmp_path), sha256]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(kills)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline()
        held = len(list(tmp_path.glob("*.running")))
        assert (deaths.reason(sha256, since_s=0), held) == (None, kills), "they live"
        for process in processes:
            process.kill()
            process.communicate()
        assert deaths.reason(sha256, since_s=0) == reason


def test_taking_back_goes_on_until_the_registry_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(taking_back, "_FIRST_PAUSE_S", 0.001)
    watched = Watched(tmp_path, FailingEngine)
    with locked(watched.registry.root / ".lock", 1):
        watched.ask(5)
        while caplog.text.count("still to be taken back") < 3:
            time.sleep(0.001)
        assert watched.champion == watched.bad
    watched.settle()
    assert watched.champion == watched.good


def test_taking_back_ends_when_another_champion_has_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(taking_back, "_FIRST_PAUSE_S", 0.001)
    watched = Watched(tmp_path, FailingEngine)
    with monkeypatch.context() as away:
        away.setattr(watched.registry, "rollback", lambda **_: (_ for _ in ()).throw(RegistryError("away")))
        watched.ask(5)
        while "away" not in caplog.text:
            time.sleep(0.001)
        third = promote(watched.registry, "third")
    watched.settle()
    assert watched.champion == third
    assert watched.registry.rollbacks() == []


def test_one_bad_hour_takes_one_champion_back(tmp_path: Path) -> None:
    """The one that was put back is as new as the one that it replaces, and the machine as bad."""

    class Failing(FakeEngine):
        def end(self, stream: Any, reason: Any) -> None:
            super().end(stream, reason if stream.request.id == "smoke" else "error")

    registry = Registry(tmp_path / "registry")
    first = promote(registry, "first")
    watched = Watched(tmp_path, Failing, min_answers=5)
    for _ in range(4):
        watched.ask(10)
        watched.settle()
    assert watched.champion == watched.good != first
    third = promote(registry, "third")
    watched.taker._host.follow()
    assert watched.champion == third
    watched.ask(10)
    watched.settle()
    assert watched.champion == watched.good, "what is promoted after that is watched again"


def test_a_champion_that_was_put_back_is_watched_again_once_it_is_promoted_again(tmp_path: Path) -> None:
    watched = Watched(tmp_path, BrokenEngine)
    promote(watched.registry, "third")
    watched.registry.rollback()
    for champion in (watched.bad, watched.good):
        watched.taker._host.follow()
        watched.ask()
        watched.settle()
        assert watched.champion == champion
        promote(watched.registry, "bad")


def test_a_replica_says_at_its_start_that_it_can_take_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    assert "can be taken back" not in caplog.text
    assert not list(watched.registry.root.glob(".probe*"))

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refused)
    watched.restart()
    assert "no champion can be taken back from here" in caplog.text
    assert "Permission denied" in caplog.text


# Waiting for a slot.


@pytest.mark.parametrize(
    ("submitted_s", "ends_s", "waited_s"),
    [
        (0.0, [], 0.0),
        (5.0, [1.0, 2.0, 9.0], 0.0),  # one of two slots is free
        (5.0, [7.0, 9.0], 2.0),  # the first that ends makes room
        (5.0, [7.0, 9.0, 11.0], 4.0),  # one waits before it
        (5.0, [7.0, float("inf")], 2.0),
        (5.0, [5.0, 9.0], 0.0),
    ],
)
def test_a_request_waits_until_enough_of_those_before_it_have_ended(
    submitted_s: float, ends_s: list[float], waited_s: float
) -> None:
    assert wait_s(submitted_s, ends_s, 2) == waited_s


def test_waiting_for_a_slot_is_no_fault_of_a_champion() -> None:
    """16 slots, 80 requests at once, answers of 4 s: the last ones begin after 16 s."""
    waits = Waits(16, clock=lambda: 100.0)
    streams = [Stream(PLAIN) for _ in range(80)]
    waits.add(streams)
    probation = Probation(RollbackRule(min_answers=50, max_first_token_s=5), until_s=10.0)
    late = Probation(RollbackRule(min_answers=50, max_first_token_s=0.2), until_s=10.0)
    reasons = []
    for index, stream in enumerate(streams):
        waited_s = index // 16 * 4.0
        answer = Result("a", "", (), "stop", 1, 0, 1, waited_s + 4, waited_s + 0.3)
        stream.finish(answer)
        assert waits.waited_s(stream) == waited_s
        assert probation.reason(PLAIN, answer, now_s=0, waited_s=waited_s) is None
        reasons.append(late.reason(PLAIN, answer, now_s=0, waited_s=waited_s))
    assert "began later than 0.2 s" in (reasons[-1] or "")
    assert waits.waited_s(Stream(PLAIN)) == 0.0


def test_a_champion_that_is_asked_too_much_at_once_stays(tmp_path: Path) -> None:
    """With one slot: each answer takes 0.1 s, and is told to have begun when those before it had ended."""

    class Slow(FakeEngine):
        def end(self, stream: Any, reason: Any) -> None:
            seconds = 0.1 * len(self.streams)
            stream.finish(Result("c", "x", (1,), "stop", 3, 0, 1, seconds, seconds - 0.05))

        def metrics(self) -> Any:
            return SimpleNamespace(num_slots=1, requests_queued=0, to_prometheus=lambda _: "")

    watched = Watched(tmp_path, Slow, min_answers=5, max_first_token_s=1.0)
    asyncio.run(collect(watched.backend, call(num_choices=30)))
    watched.settle()
    assert watched.champion == watched.bad
