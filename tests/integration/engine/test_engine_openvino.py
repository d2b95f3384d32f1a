"""The OpenVINO backend behind the same interface; skipped where it is not installed or does not import."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.engine import (
    CoreLease,
    Engine,
    EngineError,
    EngineSettings,
    ModelMismatch,
    Request,
    RequestError,
    Sampling,
)
from serving.engine.topology import usable_cores

SCHEMA = '{"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}'


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[Engine]:
    pytest.importorskip("openvino_genai", exc_type=ImportError)
    settings = EngineSettings(backend="openvino", pin=False, slots=8, context_tokens=512)
    with Engine.open(model_path, settings) as opened:
        yield opened


def threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin threads")
def test_its_threads_stay_on_the_engines_cores(engine: Engine, tmp_path: Path) -> None:
    """Of two engines' cores the second's, as the library would take the process's first ones, or all."""
    allowed = os.sched_getaffinity(os.getpid())
    leases = [CoreLease.acquire(1, folder=tmp_path) for _ in (usable_cores() or [None])[:2]]
    before = threads()
    settings = EngineSettings(backend="openvino", slots=4, context_tokens=256)
    with Engine.open(engine.model_path, settings, leases[-1]) as pinned:
        pinned.generate([Request("a", (5, 6, 7), Sampling(max_tokens=5))])
        started = {thread: os.sched_getaffinity(thread) for thread in threads() - before}
    assert len(started) > 3
    assert {frozenset(cpus) for cpus in started.values()} == {frozenset(leases[-1].cpus)}
    assert os.sched_getaffinity(os.getpid()) == allowed
    for lease in leases:
        lease.release()


def test_same_requests_same_results_format(engine: Engine) -> None:
    prompt = engine.chat.render([{"role": "user", "content": "What is the capital of France?"}])
    free, stopped, late, refused = engine.generate(
        [
            Request("free", prompt, Sampling(max_tokens=20, top_logprobs=0)),
            Request("stopped", prompt, Sampling(max_tokens=20, stop=("Paris",))),
            Request("late", prompt, Sampling(max_tokens=20), deadline_s=0.0),
            Request("refused", prompt, Sampling(top_logprobs=3)),
        ]
    )
    assert "Paris" in free.text
    assert engine.detokenize(free.tokens) == free.text
    assert free.logprobs is not None
    assert len(free.logprobs) == free.num_answer_tokens
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index("Paris")]
    assert late.finish_reason == "timeout"
    assert refused.error_code == "unsupported"


def test_streams_and_cancels(engine: Engine) -> None:
    prompt = engine.chat.render([{"role": "user", "content": "Tell a long story."}])
    stream = engine.submit(Request("a", prompt, Sampling(max_tokens=400)))
    next(iter(stream))
    stream.cancel()
    assert stream.result(20).finish_reason == "cancelled"
    again = engine.submit(Request("b", prompt, Sampling(max_tokens=12)))
    assert "".join(delta.text for delta in again) == again.result(0).text
    with pytest.raises(RequestError) as raised:
        engine.submit(Request("c", (5,) * 512))
    assert raised.value.code == "context_length_exceeded"


def test_an_answer_that_nobody_watches_is_the_one_that_is_streamed(engine: Engine) -> None:
    """Such answers are read from the library whole, at their end; what it is worth is not changed by that."""
    prompt = engine.chat.render([{"role": "user", "content": "Tell a story."}])
    sampling = Sampling(max_tokens=40, top_logprobs=0)
    watched = engine.submit(Request("watched", prompt, sampling)).result(60)
    before = engine.metrics()
    (whole,) = engine.generate([Request("whole", prompt, sampling)])
    after = engine.metrics()
    assert (whole.text, whole.tokens, whole.finish_reason) == (watched.text, watched.tokens, "length")
    assert whole.logprobs is not None
    assert watched.logprobs is not None
    assert [one.logprob for one in whole.logprobs] == pytest.approx(
        [one.logprob for one in watched.logprobs], abs=0.1
    )
    assert after.answer_tokens - before.answer_tokens == 40
    assert sum(after.per_token_counts) - sum(before.per_token_counts) == 39
    assert whole.first_token_s is not None
    last_token_s = whole.first_token_s + after.per_token_sum_s - before.per_token_sum_s
    assert whole.seconds / 2 < last_token_s <= whole.seconds + 1e-6  # and then it is told, however late


def test_what_was_written_until_the_deadline_is_returned(engine: Engine) -> None:
    prompt = engine.chat.render([{"role": "user", "content": "Tell a long story."}])
    free = engine.submit(Request("free", prompt, Sampling(max_tokens=400))).result(120)
    limit = free.seconds / 4
    (late,) = engine.generate([Request("late", prompt, Sampling(max_tokens=400), deadline_s=limit)])
    assert late.finish_reason == "timeout"
    assert 1 < late.num_answer_tokens < free.num_answer_tokens
    assert late.tokens == free.tokens[: late.num_answer_tokens]


def test_an_architecture_that_it_cannot_read_is_refused_by_name() -> None:
    from serving.engine.openvino.pipeline import open_pipeline

    with pytest.raises(ModelMismatch, match="not phi3"):
        open_pipeline("m.gguf", "phi3", EngineSettings(slots=1), 1)


def test_grammars_and_schemas_constrain_and_bad_ones_are_refused_before_they_run(engine: Engine) -> None:
    prompt = engine.chat.render([{"role": "user", "content": "How many legs has a spider?"}])
    score, shaped, broken, no_schema = engine.generate(
        [
            Request("score", prompt, Sampling(grammar='root ::= "7" | "9"', max_tokens=4, top_logprobs=0)),
            Request("shaped", prompt, Sampling(json_schema=SCHEMA, max_tokens=40)),
            Request("broken", prompt, Sampling(grammar="root ::= [a")),
            Request("no_schema", prompt, Sampling(json_schema='{"type": "nothing"}')),
        ]
    )
    assert score.text in ("7", "9")
    assert set(json.loads(shaped.text)) == {"legs"}
    assert broken.error_code == "bad_grammar"
    assert no_schema.error_code == "bad_json_schema"


def test_a_forced_token_keeps_the_probability_that_it_had_among_all(engine: Engine) -> None:
    """The judge's expected score rests on it: masked before the softmax, every forced score would be sure."""
    prompt = engine.chat.render([{"role": "user", "content": "How many legs has a spider?"}])
    forced = [
        Request(digit, prompt, Sampling(grammar=f'root ::= "{digit}"', max_tokens=1, top_logprobs=0))
        for digit in "0123456789"
    ]
    shares = [math.exp(result.logprobs[0].logprob) for result in engine.generate(forced) if result.logprobs]
    assert len(shares) == 10
    assert sum(shares) < 1.0
    assert max(shares) < 0.9


def test_the_rest_lives_when_a_grammar_breaks_the_pipeline(engine: Engine) -> None:
    """llama.cpp knows tokens by number in a grammar, XGrammar does not: it fails within a pass over all."""
    prompt = engine.chat.render([{"role": "user", "content": "What is the capital of France?"}])
    (alone,) = engine.generate([Request("alone", prompt, Sampling(max_tokens=20))])
    beside, foreign = engine.generate(
        [
            Request("beside", prompt, Sampling(max_tokens=20)),
            Request("foreign", prompt, Sampling(grammar="root ::= <[33]>", max_tokens=2)),
        ]
    )
    assert foreign.error_code == "bad_grammar"
    assert "openvino" in str(foreign.error)
    assert beside.text == alone.text


def test_no_more_is_asked_of_the_cache_than_it_holds(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline itself loses requests, or stands still, when they outgrow it."""
    runtime: Any = engine._runtime
    monkeypatch.setattr(runtime._room, "num_tokens", 160)
    most: list[int] = []
    start = runtime._start

    def started(job: Any) -> None:
        start(job)
        most.append(sum(runtime._room.needed(slot.job.request) for slot in runtime._running.values()))

    monkeypatch.setattr(runtime, "_start", started)
    prompt = engine.chat.render([{"role": "user", "content": "Tell a long story."}])
    asked = [Request(str(index), prompt, Sampling(max_tokens=12)) for index in range(6)]
    huge = Request("huge", prompt, Sampling(max_tokens=400))
    *answered, refused = engine.generate([*asked, huge])
    assert [each.finish_reason for each in answered] == ["length"] * 6
    assert len({each.tokens for each in answered}) == 1
    assert refused.error_code == "context_length_exceeded"
    assert len(most) == 6
    assert max(most) <= 160


def test_half_written_json_begins_anew_when_the_pipeline_does(engine: Engine) -> None:
    prompt = engine.chat.render([{"role": "user", "content": "Answer in JSON."}])
    written = Request("json", prompt, Sampling(max_tokens=40, json_schema=SCHEMA))
    (alone,) = engine.generate([written])
    broken = Request("broken", prompt, Sampling(max_tokens=20, grammar="root ::= <[33]>"))
    seen = engine.submit(written)
    next(iter(seen))
    results = engine.generate([written, broken, written])
    assert [each.text for each in (results[0], results[2])] == [alone.text] * 2
    assert results[1].error_code == "bad_grammar"
    # Somebody has seen its beginning, which another would not fit to.
    assert seen.result(30).text in (alone.text, alone.text[: len(seen.result(30).text)])
    assert "legs" in json.loads(alone.text)


def test_an_engine_that_fails_says_so_for_all_that_it_had(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one: the engine is dead after it."""
    runtime: Any = engine._runtime

    class Failing:
        def __init__(self, pipeline: Any) -> None:
            self._pipeline = pipeline

        def __getattr__(self, name: str) -> Any:
            return getattr(self._pipeline, name)

        def step(self) -> None:
            raise RuntimeError("no room")

    monkeypatch.setattr(runtime, "_pipeline", Failing(runtime._pipeline))
    prompt = engine.chat.render([{"role": "user", "content": "Hi."}])
    with pytest.raises(EngineError, match="the engine has failed: no room"):
        engine.generate([Request(str(index), prompt) for index in range(12)])
