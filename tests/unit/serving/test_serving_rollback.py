"""Champions that are watched, taken back, and compared with what was recorded of them."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from serving_fakes import FailingEngine, FakeEngine

from serving import expectations
from serving.answering import HostBackend
from serving.calls import Call
from serving.deaths import EngineDeaths
from serving.engine import (
    Engine,
    EngineError,
    EngineSettings,
    Request,
    Sampling,
)
from serving.engine.types import Result
from serving.files import sha256_of
from serving.host import ModelHost
from serving.probation import Probation, RollbackRule
from serving.promote import status
from serving.registry import Registry, RegistryError
from serving.taking_back import Taker

PLAIN = Request("a", (1,))
SHAPED = Request("a", (1,), Sampling(json_schema="{}"))


def result(reason: Any = "stop", first_token_s: float | None = 0.1, code: str | None = None) -> Result:
    return Result("a", "", (), reason, 1, 0, 1, 0.2, first_token_s, error_code=code)


def verdicts(
    rule: RollbackRule, results: list[Result], request: Request = PLAIN, now_s: float = 0.0
) -> list[bool]:
    probation = Probation(rule, until_s=10.0)
    return [probation.reason(request, each, now_s=now_s) is not None for each in results]


def test_too_many_failures_end_a_champion_once_enough_answers_are_seen() -> None:
    rule = RollbackRule(min_answers=10, max_failure_share=0.2)
    good, bad = [result()] * 7, [result("error")] * 3
    assert verdicts(rule, bad + good) == [False] * 9 + [True]
    assert verdicts(rule, bad[:2] + good + [result()]) == [False] * 10
    assert not any(verdicts(rule, bad + good, now_s=11.0)), "its time is over"


@pytest.mark.parametrize(
    ("request_", "failed"),
    [
        (SHAPED, result("error")),
        (PLAIN, result("error", code="context_length_exceeded")),
        (PLAIN, result("cancelled")),
        (PLAIN, result("timeout")),
    ],
    ids=["a client's grammar", "a prompt too long for the cache", "a client that went", "a long answer"],
)
def test_what_clients_cause_takes_no_champion_back(request_: Request, failed: Result) -> None:
    assert not any(verdicts(RollbackRule(min_answers=1), [failed] * 100, request_))


def test_an_answer_that_never_began_is_a_failure() -> None:
    assert any(verdicts(RollbackRule(min_answers=1), [result("timeout", None)]))


def test_slow_first_tokens_end_a_champion() -> None:
    rule = RollbackRule(min_answers=20, max_first_token_s=1.0)
    assert not any(verdicts(rule, [result()] * 19 + [result(first_token_s=2.0)])), "one of twenty is 5 %"
    assert any(verdicts(rule, [result()] * 18 + [result(first_token_s=2.0)] * 2))


# In the registry.


def promote(registry: Registry, word: str, **more: Any) -> str:
    path = registry.root.parent / f"{word}.gguf"
    path.write_text(word)
    registry.promote(path, sha256=sha256_of(path), run=word, report=path, **more)
    return sha256_of(path)


def host_over(registry: Registry, engine: type[FakeEngine] = FakeEngine) -> ModelHost:
    opened = SimpleNamespace(open=lambda path, *_: cast("Engine", engine(path)))
    host = ModelHost(registry, EngineSettings(pin=False), open_engine=opened.open)
    host.follow()
    return host


def taker_of(host: ModelHost, registry: Registry, folder: Path, **rule: Any) -> Taker:
    rule = {"min_answers": 5, **rule}
    return Taker(host, registry, RollbackRule(**rule), deaths=EngineDeaths(folder / "deaths"))


@pytest.mark.parametrize("age_s", [0, 10_000])
def test_a_champion_that_fails_is_taken_back_while_it_is_new(tmp_path: Path, age_s: float) -> None:
    registry = Registry(tmp_path / "registry")
    good = promote(registry, "good")
    decided = datetime.fromtimestamp(datetime.now(UTC).timestamp() - age_s, UTC).isoformat()
    bad = promote(registry, "bad", decided_at=decided)
    host = host_over(registry, FailingEngine)
    backend = HostBackend(host, registry, taker_of(host, registry, tmp_path))
    call = Call("c", None, Sampling(), None, messages=({"role": "user", "content": "x"},))

    async def ask() -> None:
        async for _ in backend.generate(call):
            continue

    async def run() -> None:
        for _ in range(5):
            await ask()

    asyncio.run(run())
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and "_take_back" in thread.name:
            thread.join(10)
    assert host.champion is not None
    assert host.champion.sha256 == (bad if age_s else good)
    if not age_s:
        (row,) = registry.rollbacks()
        assert (row["from"], row["reason"]) == (bad, "5 of its first 5 answers failed")
        assert f"rolled back  {bad[:12]}" in status(registry)


def test_a_rollback_that_comes_late_changes_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first, second, third = (promote(registry, word) for word in ("one", "two", "three"))
    with pytest.raises(RegistryError, match="no longer"):
        registry.rollback(only_from=second)
    assert registry.rollback(only_from=third).sha256 == second
    with pytest.raises(RegistryError, match="no longer"):
        registry.rollback(only_from=third)
    assert registry.rollback().sha256 == first
    assert [row["run"] for row in registry.rollbacks()] == ["three", "two"]


# Recorded answers.


class TokenEngine:
    """Its answers are tokens of its choice."""

    model_path = Path("model.gguf")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.chat = SimpleNamespace(render=lambda messages, **_: (1, 2, 3))

    def submit(self, request: Request) -> Any:
        answer = Result(request.id, "", tuple(self.tokens), "length", 3, 0, len(self.tokens), 0.1, 0.1)
        return SimpleNamespace(result=lambda timeout_s: answer)


@pytest.mark.parametrize(
    ("tokens", "agrees"),
    [([1, 2, 3, 4], True), ([1, 2, 9, 9], True), ([1, 9, 3, 4], False), ([], False), ([7, 7, 7, 7], False)],
)
def test_recorded_answers_must_come_again_for_the_most_part(
    tmp_path: Path, tokens: list[int], agrees: bool
) -> None:
    expected = tmp_path / "expected.json"
    expected.write_bytes(expectations.record(cast("Engine", TokenEngine([1, 2, 3, 4]))))
    engine = cast("Engine", TokenEngine(tokens))
    if agrees:
        expectations.check(engine, expected)
    else:
        with pytest.raises(EngineError, match="tokens are those recorded"):
            expectations.check(engine, expected)


def test_recorded_answers_do_not_depend_on_the_day(tmp_path: Path) -> None:
    """Some templates write today's date into every prompt."""

    class DatedEngine(TokenEngine):
        def submit(self, request: Request) -> Any:
            self.tokens = [sum(request.prompt)] * 4
            return super().submit(request)

    expected, engine = tmp_path / "expected.json", DatedEngine([])
    expected.write_bytes(expectations.record(cast("Engine", engine)))
    engine.chat = SimpleNamespace(render=lambda messages, **_: (1, 2, 3, 4))
    expectations.check(cast("Engine", engine), expected)
    rows = json.loads(expected.read_bytes())["answers"]
    for row in rows:
        assert row.pop("prompt_tokens") == [1, 2, 3]
    expected.write_text(json.dumps({"answers": rows}))
    with pytest.raises(EngineError, match="tokens are those recorded"):
        expectations.check(cast("Engine", engine), expected)
    engine.chat = SimpleNamespace(render=lambda messages, **_: (1, 2, 3))
    expectations.check(cast("Engine", engine), expected)


@pytest.mark.parametrize(
    "text", ["", "{", "{}", '{"answers": [1]}', '{"answers": [{"prompt": "x", "tokens": 1}]}']
)
def test_a_file_that_holds_no_answers_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "expected.json").write_text(text)
    with pytest.raises(EngineError, match=r"expected\.json: these are no recorded answers"):
        expectations.check(cast("Engine", TokenEngine([1])), tmp_path / "expected.json")


def test_a_model_that_computes_otherwise_is_not_served(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    promote(
        registry, "one", expected=json.dumps({"answers": [{"prompt": "x", "tokens": [1, 1, 1]}]}).encode()
    )
    host = host_over(registry)
    assert host.champion is not None
    promote(
        registry, "two", expected=json.dumps({"answers": [{"prompt": "x", "tokens": [5, 5, 5]}]}).encode()
    )
    with pytest.raises(EngineError, match="0 of 3 tokens"):
        host.follow()
    assert host.champion.name.startswith("one@")
