"""The engine on the bundled model: joining, leaving, sharing, failing, and leaking nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.engine import (
    Engine,
    EngineError,
    EngineSettings,
    ModelLoadError,
    ModelMismatch,
    Request,
    RequestError,
    Result,
    Sampling,
    verify_model,
)
from serving.engine.cores import CoreLease
from serving.engine.llamacpp import sampling as sampling_module
from serving.engine.llamacpp.context import LlamaBackend
from serving.engine.llamacpp.quality import next_token_logits
from serving.engine.llamacpp.quantize import quantize
from serving.engine.llamacpp.sampling import logprob_of
from serving.engine.placement import inward

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[Engine]:
    settings = EngineSettings(pin=False, slots=6, context_tokens=512, batch_tokens=256)
    with Engine.open(model_path, settings) as opened:
        yield opened


def chat(engine: Engine, text: str) -> tuple[int, ...]:
    return engine.chat.render([{"role": "user", "content": text}])


def wait_until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s, "the condition did not come true in time"
        time.sleep(0.005)


def cells_match(engine: Engine) -> bool:
    """The native cache holds exactly what the scheduler believes."""
    lanes = engine._runtime._lanes  # type: ignore[attr-defined]
    return all(
        lane.backend.cells(slot.index) == slot.num_computed == len(slot.tokens)
        for lane in lanes
        for slot in lane.scheduler.slots
    )


def assert_idle_and_sound(engine: Engine) -> None:
    wait_until(lambda: engine.metrics().requests_active == 0 and engine.metrics().requests_queued == 0)
    assert cells_match(engine)


def test_a_greedy_answer_is_llama_cpps_own(model_path: Path) -> None:
    from llama_cpp import Llama

    settings = EngineSettings(pin=False, slots=1, context_tokens=512, kv_type="f16", flash_attention=True)
    with Engine.open(model_path, settings) as engine:
        prompt = chat(engine, "What is the capital of France?")
        (result,) = engine.generate([Request("a", prompt, Sampling(max_tokens=20))])
        assert engine.detokenize(result.tokens) == result.text
    plain = Llama(str(model_path), n_ctx=512, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False)
    expected = plain.create_completion(list(prompt), max_tokens=20, temperature=0.0)
    assert result.text == expected["choices"][0]["text"]
    assert result.num_answer_tokens == expected["usage"]["completion_tokens"]
    assert result.first_token_s is not None
    assert 0 < result.first_token_s <= result.seconds


def test_requests_join_and_leave_while_another_writes(engine: Engine) -> None:
    long = engine.submit(Request("long", chat(engine, "Tell a story."), Sampling(max_tokens=120)))
    next(iter(long))
    joined = engine.submit(Request("joined", chat(engine, "Say hello."), Sampling(max_tokens=4)))
    assert joined.result(60).num_answer_tokens <= 4
    assert not long.done
    assert long.result(60).num_answer_tokens == 120
    assert_idle_and_sound(engine)


def test_cancel_while_writing_frees_the_slot(engine: Engine) -> None:
    stream = engine.submit(Request("a", chat(engine, "Tell a long story."), Sampling(max_tokens=400)))
    next(iter(stream))
    stream.cancel()
    result = stream.result(10)
    assert result.finish_reason == "cancelled"
    assert 0 < result.num_answer_tokens < 400
    assert_idle_and_sound(engine)


def test_cancel_in_the_prompt_stops_the_pass(model_path: Path) -> None:
    settings = EngineSettings(pin=False, slots=2, context_tokens=2048, batch_tokens=2048)
    with Engine.open(model_path, settings) as engine:
        prompt = tuple(random.Random(1).choices(range(1000, 9000), k=2000))
        lane = engine._runtime._lanes[0]  # type: ignore[attr-defined]
        stream = engine.submit(Request("a", prompt))
        wait_until(lambda: lane.scheduler.computes(stream))
        stream.cancel()
        assert stream.result(30).finish_reason == "cancelled"
        assert stream.result().num_answer_tokens == 0
        assert_idle_and_sound(engine)
        again = engine.submit(Request("b", prompt[:50], Sampling(max_tokens=3))).result(60)
        assert again.finish_reason == "length"


def test_a_thousand_mixed_requests_leak_nothing(engine: Engine) -> None:
    rng = random.Random(5)
    system = chat(engine, "You are a judge. " * 12)
    before = engine.metrics()
    streams = []
    for index in range(1000):
        prompt = system[: rng.choice([1, 30, len(system)])] + tuple(
            rng.choices(range(500, 40000), k=rng.randint(1, 12))
        )
        sampling = Sampling(
            temperature=rng.choice([0.0, 0.8]),
            top_k=rng.choice([0, 20]),
            repeat_penalty=rng.choice([1.0, 1.1]),
            seed=index,
            max_tokens=rng.randint(1, 6),
            top_logprobs=rng.choice([None, None, 2]),
            stop=rng.choice([(), ("the",), ("\n", ". ")]),
            grammar=rng.choice([None, None, None, 'root ::= [a-z ]+ "."']),
        )
        deadline_s = rng.choice([None, None, None, 0.05])
        streams.append(engine.submit(Request(str(index), prompt, sampling, deadline_s)))
        if rng.random() < 0.1:
            rng.choice(streams).cancel()
    for stream in streams:
        result = stream.result(120)
        assert result.finish_reason in ("stop", "length", "cancelled", "timeout"), result
        assert "".join(delta.text for delta in stream) == result.text
        assert not any(stop in result.text for stop in stream.request.sampling.stop)
    after = engine.metrics()
    ended = after.requests_done + after.requests_cancelled - before.requests_done - before.requests_cancelled
    assert after.requests_failed == before.requests_failed
    assert ended <= 1000  # those cancelled while they waited never reached a lane
    assert after.cached_tokens > before.cached_tokens
    assert_idle_and_sound(engine)


def test_greedy_answers_alone_and_in_a_crowd(engine: Engine) -> None:
    topics = [
        "rain",
        "bread",
        "chess",
        "ships",
        "copper",
        "bees",
        "maps",
        "paint",
        "salt",
        "clocks",
        "wool",
        "ice",
    ]
    prompts = [chat(engine, f"Write a sentence about {topic}.") for topic in topics]
    sampling = Sampling(max_tokens=24)
    together = engine.generate([Request(str(i), prompt, sampling) for i, prompt in enumerate(prompts)])
    alone = [engine.generate([Request(str(i), prompt, sampling)])[0] for i, prompt in enumerate(prompts)]
    same = sum(a.tokens == b.tokens for a, b in zip(alone, together, strict=True))
    # Kernels for one row and for many round differently, so a near-tie may fall either way and the rest
    # differ.
    assert same >= len(topics) // 2
    assert all(a.tokens[:2] == b.tokens[:2] for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        pytest.param("q4_1", {}, marks=pytest.mark.long),
        ("q4_0", {"cores": 2}),
        ("f16", {}),
        pytest.param("q4_0", {"kv_type": "q8_0"}, marks=pytest.mark.long),
        pytest.param("q8_0", {}, marks=pytest.mark.long),
    ],
)
def test_deterministic_answers_depend_on_nothing_else(
    recipe: str,
    changes: dict[str, Any],
    bundled_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In formats whose matrix products llama.cpp computes by unlike kernels."""
    settings = EngineSettings(
        pin=False, slots=4, context_tokens=512, batch_tokens=128, deterministic=True, **changes
    )
    file = bundled_model
    if recipe != "q4_1":
        file = quantize(bundled_model, tmp_path / "model.gguf", recipe, num_threads=2)
    with Engine.open(file, settings) as engine:
        requests = mixed_requests(engine)
        alone = [engine.generate([request])[0] for request in requests]
        together = engine.generate(requests)
        reversed_order = engine.generate(requests[::-1])[::-1]
        passes, rows = engine.metrics().steps, engine.metrics().rows
    assert written(together) == written(alone)
    assert written(reversed_order) == written(alone)
    if "one sequence a pass" not in caplog.text:  # as a processor's kernels may want it
        assert sum(result.num_cached_tokens for result in together) > 0
        assert rows > 2 * passes


def test_answers_that_move_to_other_slots_stay_what_they_are(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Few of many slots are busy, and conversations go on: slots are copied, also of answers that are being
    written."""
    moves, draw = [], random.Random(0)

    def counted(*arguments: Any) -> Any:
        move = inward(*arguments)
        moves.extend([move] if move else [])
        return move

    monkeypatch.setattr("serving.engine.scheduler.inward", counted)
    settings = EngineSettings(pin=False, slots=12, context_tokens=512, batch_tokens=128, deterministic=True)
    topics = ["rain", "bread", "trains", "stars", "soap", "maps", "bees"]
    with Engine.open(model_path, settings) as engine:
        chats: dict[str, list[dict[str, str]]] = {topic: [] for topic in topics}
        asked: list[tuple[Request, Result]] = []
        for _ in range(4):
            streams = {}
            for topic in draw.sample(topics, 4):
                chats[topic].append({"role": "user", "content": f"Tell me something more about {topic}."})
                sampling = Sampling(max_tokens=draw.randint(4, 30))
                request = Request(topic, engine.chat.render(chats[topic]), sampling)
                streams[topic] = request, engine.submit(request)
            for topic, (request, stream) in streams.items():
                asked.append((request, stream.result()))
                chats[topic].append({"role": "assistant", "content": asked[-1][1].text})
        assert_idle_and_sound(engine)
        assert moves or "one sequence a pass" in caplog.text  # as a processor's kernels may want it
    with Engine.open(model_path, settings.model_copy(update={"slots": 2})) as engine:
        alone = [engine.generate([request])[0] for request, _ in asked]
    assert written([result for _, result in asked]) == written(alone)


def test_deterministic_answers_are_exact_where_rows_are_not_kept_apart(
    model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EngineSettings(
        pin=False, slots=4, context_tokens=512, batch_tokens=128, deterministic=True, flash_attention=False
    )
    with Engine.open(model_path, settings) as engine:
        requests = mixed_requests(engine)
        together = engine.generate(requests)
        alone = [engine.generate([request])[0] for request in requests]
    assert written(together) == written(alone)
    assert "one sequence a pass" in caplog.text


def test_auto_batches_where_rows_are_not_kept_apart(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LlamaBackend, "_keeps_apart", lambda _: False)
    settings = EngineSettings(pin=False, slots=4, context_tokens=512, batch_tokens=128, deterministic="auto")
    with Engine.open(model_path, settings) as engine:
        engine.generate(mixed_requests(engine)[:4])
        assert engine.metrics().rows > 2 * engine.metrics().steps
    assert "so do answers a little" in caplog.text


def mixed_requests(engine: Engine) -> list[Request]:
    """Short and long prompts, shared beginnings, a chat that goes on, greedy and by chance."""
    topics = ("rain", "bread", "chess", "ships", "copper")
    texts = [f"Write a sentence about {topic}." for topic in topics]
    texts += [f"{'A river runs to the sea. ' * 40} Write a sentence about {topic}." for topic in topics[:2]]
    prompts = [chat(engine, text) for text in texts] + [(5,), tuple(range(300, 363)), tuple(range(300, 364))]
    prompts.append((*prompts[0], *engine.tokenize("Rain falls.")))
    prompts += [prompts[5][:200], prompts[6][:-1]]
    return [
        Request(str(i), prompt, Sampling(max_tokens=8, temperature=0.8 * (i % 2), seed=i, top_logprobs=2))
        for i, prompt in enumerate(prompts)
    ]


def written(results: list[Result]) -> list[tuple[object, ...]]:
    """What must be equal to the last digit."""
    return [(result.tokens, result.logprobs) for result in results]


def test_sampling_is_repeatable_by_seed(engine: Engine) -> None:
    prompt = chat(engine, "Invent a name for a cat.")

    def sample(seed: int) -> tuple[int, ...]:
        sampling = Sampling(temperature=1.2, seed=seed, max_tokens=12)
        return engine.generate([Request("a", prompt, sampling)])[0].tokens

    answers = [sample(seed) for seed in (1, 2, 3, 4, 1)]
    assert answers[0] == answers[-1]
    assert len(set(answers)) > 1


def test_logit_bias_logprobs_and_stop_tokens(engine: Engine) -> None:
    prompt = chat(engine, "Say something.")
    wanted = engine.tokenize(" blue")[0]
    sampling = Sampling(logit_bias={wanted: 100.0}, max_tokens=3, top_logprobs=3)
    (result,) = engine.generate([Request("a", prompt, sampling)])
    assert result.tokens == (wanted,) * 3
    assert result.logprobs is not None
    for entry in result.logprobs:
        assert entry.token_id == wanted
        assert len(entry.top) == 3
        assert max(entry.top.values()) >= entry.logprob
        assert sorted(entry.top.values(), reverse=True) == list(entry.top.values())
    (stopped,) = engine.generate(
        [Request("b", prompt, Sampling(logit_bias={wanted: 100.0}, stop_token_ids=(wanted,)))]
    )
    assert (stopped.tokens, stopped.finish_reason) == ((), "stop")


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_prompts_scores_are_the_models_own(model_path: Path, deterministic: bool) -> None:
    """Against llama.cpp over the whole text at once, beside other work, and twice the same."""
    text = "The quick brown fox jumps over the lazy dog. " * 20
    tokens, logits = next_token_logits(str(model_path), text, max_tokens=200)
    wanted = [logprob_of(logits[index], token, 2) for index, token in enumerate(tokens[1:])]
    settings = EngineSettings(pin=False, slots=4, context_tokens=512, deterministic=deterministic)
    with Engine.open(model_path, settings) as engine:
        scored = Request("a", tuple(tokens), Sampling(max_tokens=1, top_logprobs=2), scores_prompt=True)
        others = [Request(str(index), chat(engine, f"Count to {index}.")) for index in range(5)]
        results = engine.generate([*others, scored, replace(scored, id="b"), *others])
        assert cells_match(engine)
    first, second = results[5].prompt_logprobs, results[6].prompt_logprobs
    assert first is not None
    assert second is not None
    assert [entry.token_id for entry in first] == tokens[1:]
    for entry, expected in zip(first, wanted, strict=True):
        assert entry.logprob == pytest.approx(expected.logprob, abs=0.2)
        assert sum(np.exp(list(entry.top.values()))) <= 1.0
    mean = sum(entry.logprob for entry in first) / len(first)
    assert mean == pytest.approx(sum(entry.logprob for entry in wanted) / len(wanted), abs=0.02)
    assert results[5].num_cached_tokens == results[6].num_cached_tokens == 0
    if deterministic:
        assert first == second


def test_stop_strings_cross_token_borders(engine: Engine) -> None:
    prompt = chat(engine, "What is the capital of France?")
    (free,) = engine.generate([Request("a", prompt, Sampling(max_tokens=40))])
    middle = len(free.text) // 2
    stop = free.text[middle - 4 : middle + 4]
    (stopped,) = engine.generate([Request("b", prompt, Sampling(max_tokens=40, stop=(stop,)))])
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]


def test_grammar_and_json_schema(engine: Engine) -> None:
    prompt = chat(engine, "Rate this answer from 1 to 5 as JSON.")
    schema = {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["score"],
    }
    sampling = Sampling(max_tokens=40, json_schema=json.dumps(schema))
    (by_schema, by_grammar) = engine.generate(
        [
            Request("a", prompt, sampling),
            Request("b", prompt, Sampling(max_tokens=8, grammar='root ::= "yes" | "no"')),
        ]
    )
    assert 1 <= json.loads(by_schema.text)["score"] <= 5
    assert by_grammar.text in ("yes", "no")


@pytest.mark.parametrize("temperature", [1e-39, 1e-38, 1e-6, 1e-5, 1.0, 100.0])
def test_no_temperature_leads_out_of_a_grammar(engine: Engine, temperature: float) -> None:
    """Logits divided by almost nothing are infinite, and the sampler's choice then means nothing."""
    prompt, schema = chat(engine, "Describe a bird as JSON."), '{"type": "object"}'
    for bias in ({}, dict.fromkeys(range(40_000), -10_000.0)):
        sampling = Sampling(max_tokens=24, temperature=temperature, json_schema=schema, logit_bias=bias)
        (result,) = engine.generate([Request("a", prompt, sampling)])
        assert result.error in (None, "the grammar allows no further token")
        assert not result.text or result.text.startswith("{")


def test_a_temperature_of_almost_nothing_is_greedy(engine: Engine) -> None:
    prompt = chat(engine, "Name a colour.")
    requests = [Request(str(t), prompt, Sampling(max_tokens=12, temperature=t)) for t in (0.0, 1e-39)]
    greedy, nearly = engine.generate(requests)
    assert greedy.tokens == nearly.tokens


def test_the_last_seed_is_a_seed_too(engine: Engine) -> None:
    """llama.cpp takes 2**32 - 1 for any."""
    sampling = Sampling(max_tokens=24, temperature=1.5, seed=2**32 - 1)
    requests = [Request(str(index), chat(engine, "Tell a story."), sampling) for index in range(3)]
    assert len({result.tokens for result in engine.generate(requests)}) == 1


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": ["line\nbreak"]}, "line\nbreak"),
        ({"const": 'tab\t, C:\\new, "quoted", é and 😀'}, 'tab\t, C:\\new, "quoted", é and 😀'),
        ({"type": "object", "properties": {'a\\b"c': {"const": 1}}, "required": ['a\\b"c']}, {'a\\b"c': 1}),
        ({"$defs": {"string": {"enum": [1]}}, "$ref": "#/$defs/string"}, 1),
        (
            {
                "$defs": {"name": {"const": "b"}, "value": {"const": [1]}},
                "type": "object",
                "properties": {
                    "name": {"const": "a"},
                    "other": {"$ref": "#/$defs/name"},
                    "value": {"$ref": "#/$defs/value"},
                },
                "required": ["name", "other", "value"],
            },
            {"name": "a", "other": "b", "value": [1]},
        ),
    ],
)
def test_what_a_schema_says_is_what_is_written(engine: Engine, schema: dict[str, Any], value: object) -> None:
    sampling = Sampling(max_tokens=80, json_schema=json.dumps(schema))
    (result,) = engine.generate([Request("a", chat(engine, "Answer in JSON."), sampling)])
    assert json.loads(result.text) == value


def test_an_answer_ends_at_the_token_that_took_its_grammar_long(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp cannot be interrupted, and the next token may take many times as long."""
    monkeypatch.setattr(sampling_module, "_MAX_ACCEPT_S", -1.0)
    request = Request("a", chat(engine, "Hello."), Sampling(max_tokens=8, grammar='root ::= "ab"+'))
    held, free = engine.generate([request, Request("b", request.prompt, Sampling(max_tokens=8))])
    assert (held.finish_reason, held.num_answer_tokens) == ("error", 1)
    assert held.error is not None
    assert "too many ways" in held.error
    assert free.finish_reason in ("stop", "length")


def test_half_characters_are_never_streamed(engine: Engine) -> None:
    emoji = engine.tokenize("😀")
    assert len(emoji) > 1
    grammar = 'root ::= "😀😀"'
    stream = engine.submit(Request("a", chat(engine, "Smile."), Sampling(max_tokens=12, grammar=grammar)))
    texts = [delta.text for delta in stream]
    assert "".join(texts) == "😀😀"
    assert all("\ufffd" not in text for text in texts)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Request("a", ()), "empty_prompt"),
        (Request("a", (5,) * 512), "context_length_exceeded"),
        (Request("a", (5,) * 3_000_000), "context_length_exceeded"),
        (Request("a", (1, 10**9)), "bad_token"),
        (Request("a", (1, -1)), "bad_token"),
        (Request("a", (1,), Sampling(grammar="root ::= (")), "bad_grammar"),
        (Request("a", (1,), Sampling(grammar="other ::= [a]")), "bad_grammar"),
        (Request("a", (1,), Sampling(grammar="")), "bad_grammar"),
        (Request("a", (1,), Sampling(grammar=f"root ::= {'(' * 100_000}[a]{')' * 100_000}")), "bad_grammar"),
        (Request("a", (1,), Sampling(grammar='root ::= "(" root "a" | "(" root "b" | "c"')), "bad_grammar"),
        (
            Request("a", (1,), Sampling(json_schema='{"type": "string", "maxLength": 1025}')),
            "bad_json_schema",
        ),
        (Request("a", (1,), Sampling(json_schema="{")), "bad_json_schema"),
        (Request("a", (1,), Sampling(json_schema="[1]")), "bad_json_schema"),
        (Request("a", (1,), Sampling(temperature=float("nan"))), "bad_sampling"),
        (Request("a", (1,), Sampling(top_p=1.5)), "bad_sampling"),
        (Request("a", (1,), Sampling(max_tokens=0)), "bad_sampling"),
        (Request("a", (1,), Sampling(stop=("",))), "bad_sampling"),
        (Request("a", (1,), Sampling(stop=(b"x",))), "bad_sampling"),  # type: ignore[arg-type]
        (Request("a", (1,), Sampling(logit_bias={10**9: 1.0})), "bad_sampling"),
        (Request("a", (1,), Sampling(logit_bias={1: float("-inf")})), "bad_sampling"),
        (Request("a", (1,), Sampling(logit_bias={1: 1e300})), "bad_sampling"),
        (Request("a", (1,), adapter="none"), "unknown_adapter"),
        (Request("a", (1,), num_written=2), "bad_request"),
        (Request("a", (1,), num_written=-1), "bad_request"),
    ],
)
def test_a_bad_request_is_refused_by_code_and_the_rest_live(
    engine: Engine, request_: Request, code: str
) -> None:
    with pytest.raises(RequestError) as raised:
        engine.submit(request_)
    assert raised.value.code == code
    good = Request("good", (1, 2, 3), Sampling(max_tokens=2))
    first, bad, last = engine.generate([good, request_, good])
    assert (bad.finish_reason, bad.error_code) == ("error", code)
    assert bad.error
    assert first.finish_reason == last.finish_reason == "length"


def test_hostile_text(engine: Engine) -> None:
    with pytest.raises(RequestError) as raised:
        engine.tokenize("a\ud800")
    assert raised.value.code == "invalid_text"
    with pytest.raises(RequestError) as raised:
        engine.tokenize("x" * 10_000_000)
    assert raised.value.code == "context_length_exceeded"
    tokens = engine.tokenize("a\0b")
    assert engine.detokenize(tokens) == "a\0b"
    (result,) = engine.generate([Request("nul", tuple(tokens), Sampling(max_tokens=2))])
    assert result.finish_reason in ("stop", "length")
    assert engine.tokenizer.tokenize("<|im_end|>") != engine.tokenizer.tokenize("<|im_end|>", special=True)


def test_a_bounded_queue_and_async_streams(model_path: Path) -> None:
    settings = EngineSettings(pin=False, slots=1, context_tokens=512, max_queued=1)
    with Engine.open(model_path, settings) as engine:
        prompt = chat(engine, "Tell a story.")
        running = engine.submit(Request("a", prompt, Sampling(max_tokens=200)))
        next(iter(running))
        waiting = engine.submit(Request("b", prompt, Sampling(max_tokens=3)))
        with pytest.raises(RequestError) as raised:
            engine.submit(Request("c", prompt))
        assert raised.value.code == "queue_full"
        running.cancel()

        async def read() -> str:
            return "".join([delta.text async for delta in waiting])

        assert asyncio.run(read()) == waiting.result(0).text
        # What a batch brings along is its own to hold: it does not count against the bound.
        results = engine.generate([Request(str(i), prompt, Sampling(max_tokens=2)) for i in range(4)])
        assert [result.id for result in results] == ["0", "1", "2", "3"]
    with pytest.raises(EngineError, match="closed"):
        engine.submit(Request("d", prompt))


def test_an_engine_that_fails_says_so_for_all_that_it_had(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were never answered must not pass for empty answers."""
    engine = Engine.open(model_path, EngineSettings(pin=False, slots=1, context_tokens=512))
    prompt = chat(engine, "Tell a story.")
    streams = [engine.submit(Request(str(index), prompt, Sampling(max_tokens=400))) for index in range(3)]
    next(iter(streams[0]))

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(LlamaBackend, "decode", fail)
    results = [stream.result(30) for stream in streams]
    assert [(each.finish_reason, each.error_code) for each in results] == [("error", "engine_failed")] * 3
    with pytest.raises(EngineError, match="the engine has failed: no room"):
        engine.generate([Request("d", prompt)])
    engine.close()


def test_a_batch_ends_with_the_engine(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    with Engine.open(model_path, EngineSettings(pin=False, slots=1, context_tokens=512)) as engine:
        prompt = chat(engine, "Tell a story.")
        monkeypatch.setattr(LlamaBackend, "decode", fail)
        with pytest.raises(EngineError, match="the engine has failed: no room"):
            engine.generate([Request(str(index), prompt) for index in range(3)])


def test_requests_that_cannot_be_made_leave_nothing_running(engine: Engine) -> None:
    def requests() -> Iterator[Request]:
        yield Request("a", chat(engine, "Tell a story."), Sampling(max_tokens=400))
        wait_until(lambda: engine.metrics().requests_active == 1)
        raise KeyError("no more")

    before = engine.metrics().requests_cancelled
    with pytest.raises(KeyError):
        engine.generate(requests())
    wait_until(lambda: engine.metrics().requests_cancelled == before + 1)


def test_a_closed_engine_says_so(model_path: Path) -> None:
    engine = Engine.open(model_path, EngineSettings(pin=False, slots=1, context_tokens=512))
    template, tokenizer = engine.chat, engine.tokenizer
    engine.close()
    for call in (
        lambda: template.render([{"role": "user", "content": "hi"}]),
        lambda: tokenizer.tokenize("hi"),
        lambda: tokenizer.detokenize([44_000]),
    ):
        with pytest.raises(EngineError, match="the engine is closed"):
            call()


def test_closing_cancels_what_runs(model_path: Path) -> None:
    engine = Engine.open(model_path, EngineSettings(pin=False, slots=1, context_tokens=512))
    running = engine.submit(Request("a", chat(engine, "Tell a story."), Sampling(max_tokens=400)))
    waiting = engine.submit(Request("b", chat(engine, "Tell a story.")))
    next(iter(running))
    engine.close()
    engine.close()
    assert running.result(0).finish_reason == "cancelled"
    assert waiting.result(0).finish_reason == "cancelled"


def test_two_lanes_share_the_weights_and_the_work(model_path: Path) -> None:
    settings = EngineSettings(pin=False, cores=2, lanes=2, slots=2, context_tokens=256)
    with Engine.open(model_path, settings) as engine:
        prompt = chat(engine, "Name a colour.")
        results = engine.generate([Request(str(i), prompt, Sampling(max_tokens=6)) for i in range(8)])
        assert len({result.tokens for result in results}) == 1
        lanes = engine._runtime._lanes  # type: ignore[attr-defined]
        assert all(lane.counters.requests_done > 0 for lane in lanes)
        assert_idle_and_sound(engine)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the platform has no core affinity")
def test_the_engine_stays_on_its_cores_and_leaves_the_caller_alone(model_path: Path, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    lease = CoreLease.acquire(1, folder=tmp_path)
    with Engine.open(model_path, EngineSettings(context_tokens=256, slots=2), lease) as engine:
        engine.generate([Request("a", (1, 2, 3), Sampling(max_tokens=2))])
        assert os.sched_getaffinity(0) == before
        lane = engine._runtime._lanes[0]  # type: ignore[attr-defined]
        assert os.sched_getaffinity(lane.native_id) == set(engine.cores) == set(lease.cpus)


_HOLDER = """
import sys
from pathlib import Path
from serving.engine import Engine, EngineSettings, Request, Sampling
from serving.engine.cores import CoreLease
lease = CoreLease.acquire(1, folder=Path(sys.argv[2]))
engine = Engine.open(sys.argv[1], EngineSettings(slots=2, context_tokens=2048), lease)
stream = engine.submit(Request("a", (1, 2, 3), Sampling(max_tokens=2000, logit_bias={2: -100.0, 0: -100.0})))
next(iter(stream))
print("writing", flush=True)
stream.result()
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the platform has no core affinity")
def test_killing_an_engines_process_frees_its_cores(model_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDER, str(model_path), str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "writing\n"
    num_cores = len(os.sched_getaffinity(0))
    with pytest.raises(EngineError):
        CoreLease.acquire(num_cores, wait_s=0, folder=tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    CoreLease.acquire(1, wait_s=5, folder=tmp_path).release()


def test_bad_files_are_refused_and_this_process_lives(model_path: Path, tmp_path: Path) -> None:
    whole = model_path.read_bytes()
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(whole[: len(whole) // 2])
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(whole.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0llamx", 1))
    for path in (truncated, foreign):
        with pytest.raises(ModelLoadError, match=path.name):
            Engine.open(path, EngineSettings(pin=False))
    verify_model(model_path)


def test_a_cache_that_cannot_fit_is_refused_with_the_arithmetic(model_path: Path) -> None:
    settings = EngineSettings(pin=False, slots=250, context_tokens=8192, kv_type="f32")
    with pytest.raises(ModelLoadError, match=r"250 slots x 8192 tokens x 46080 bytes"):
        Engine.open(model_path, settings)
    with pytest.raises(ModelMismatch, match="trained for 8192"):
        Engine.open(model_path, EngineSettings(pin=False, context_tokens=8193))


def test_the_documented_program_runs(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (REPOSITORY / "docs" / "engine.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    opened = Engine.open
    cores = EngineSettings(pin=False, cores=2, lanes=2, context_tokens=256)
    monkeypatch.setattr(Engine, "open", lambda name, _: opened({"model.gguf": model_path}[name], cores))
    exec(compile(program, "docs/engine.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    results = [line for line in lines if re.match(r"(stop|length) \d+ ", line)]
    assert len(results) == 8, "answers may have lines of their own"
    assert lines[-1] not in results, "the last request's answer comes as it is written"
