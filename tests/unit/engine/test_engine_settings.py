"""Settings, streams, the queue, and imports that cost nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from engine_fakes import job
from pydantic import ValidationError

from serving.engine.errors import EngineError, RequestError
from serving.engine.metrics import Counters, snapshot
from serving.engine.queue import JobQueue
from serving.engine.settings import EngineSettings
from serving.engine.stream import Stream
from serving.engine.types import Delta, Request, Result, Sampling


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, serving.engine as e; e.EngineSettings(); e.Request('a', (1,)); e.Engine; e.CoreLease\n"
        "heavy = {'llama_cpp', 'openvino', 'numpy', 'torch', 'ray', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "wrong",
    [{"coers": 2}, {"cores": 0}, {"cores": "2"}, {"cores": 1, "lanes": 2}, {"slots": 512}, {"kv_type": "q2"}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EngineSettings(**wrong)  # type: ignore[arg-type]


def test_request_errors_keep_their_code_across_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RequestError("queue_full", "no room")))
    assert (error.code, str(error)) == ("queue_full", "no room")


def result_of(stream: Stream) -> Result:
    return Result(stream.request.id, "ab", (1, 2), "stop", 1, 0, 2, 0.1, 0.05)


def test_async_reading_gets_every_delta_and_then_the_result() -> None:
    stream = Stream(Request("a", (1,)))

    async def read() -> tuple[list[str], Result]:
        thread.start()
        texts = [delta.text async for delta in stream]
        return texts, await stream.result_async()

    def write() -> None:
        for text in "abc":
            stream.push(Delta(text))
        stream.finish(result_of(stream))

    thread = threading.Thread(target=write)
    texts, result = asyncio.run(read())
    thread.join()
    assert texts == ["a", "b", "c"]
    assert result.text == "ab"


def test_a_result_is_final_and_cancel_comes_too_late() -> None:
    cancelled: list[Stream] = []
    stream = Stream(Request("a", (1,)), on_cancel=cancelled.append)
    with pytest.raises(TimeoutError):
        stream.result(0.0)
    stream.finish(result_of(stream))
    stream.cancel()
    assert not stream.cancelled
    assert not cancelled
    assert list(stream) == []


def test_lanes_share_what_waits_evenly() -> None:
    queue = JobQueue(num_lanes=2)
    for index in range(6):
        queue.put(job([1], name=str(index)), bounded=True)
    first = queue.take(0, num_active=0, num_free=16)
    second = queue.take(1, num_active=0, num_free=16)
    assert first is not None
    assert second is not None
    assert [each.request.id for each in first] == ["0", "1", "2"]
    assert len(second) == 3


def test_a_bounded_queue_refuses_and_a_closed_one_cancels() -> None:
    queue = JobQueue(num_lanes=1, max_queued=1)
    waiting = job([1])
    queue.put(waiting, bounded=True)
    with pytest.raises(RequestError) as raised:
        queue.put(job([1]), bounded=True)
    assert raised.value.code == "queue_full"
    queue.put(job([1]), bounded=False)
    queue.close("closed")
    assert waiting.stream.result(0).finish_reason == "cancelled"
    assert queue.take(0, num_active=0, num_free=4) is None
    with pytest.raises(EngineError, match="closed"):
        queue.put(job([1]), bounded=False)


def test_waiting_jobs_can_be_withdrawn_or_run_out_of_time() -> None:
    queue = JobQueue(num_lanes=1)
    leaving, late, staying = job([1], name="l"), job([1], name="t", deadline_s=0.0), job([1], name="s")
    for each in (leaving, late, staying):
        queue.put(each, bounded=True)
    assert queue.withdraw(leaving.stream)
    assert not queue.withdraw(leaving.stream)
    assert queue.take(0, num_active=0, num_free=4) == [staying]
    assert leaving.stream.result(0).finish_reason == "cancelled"
    assert late.stream.result(0).finish_reason == "timeout"


def test_metrics_in_the_text_that_prometheus_reads() -> None:
    first, second = Counters(), Counters()
    first.prompt_tokens, first.cached_tokens, second.prompt_tokens = 30, 20, 10
    first.first_token.add(0.02)
    second.first_token.add(99.0)
    metrics = snapshot([first, second], num_queued=3, num_slots=8, context_tokens=64)
    assert metrics.prefix_hit_rate == 0.5
    assert metrics.kv_capacity_tokens == 512
    text = metrics.to_prometheus()
    assert "engine_prompt_tokens_total 40\n" in text
    assert "engine_requests_queued 3\n" in text
    assert 'engine_first_token_seconds_bucket{le="0.025"} 1\n' in text
    assert 'engine_first_token_seconds_bucket{le="+Inf"} 2\n' in text


def test_auto_settings_take_what_calibration_found_here_and_nothing_foreign(tmp_path: Path) -> None:
    from serving.engine.calibrate import write
    from serving.engine.calibration import Calibration, Trial, calibration_path, cpu_name, resolve

    model = tmp_path / "m.gguf"
    model.write_bytes(b"x" * 1000)
    auto = EngineSettings(backend="auto", lanes="auto", slots="auto", cores=2)
    plain = resolve(auto, model)
    assert (plain.backend, plain.lanes, plain.slots) == ("llama_cpp", 2, 16)
    rates = {"answer_tokens_per_s": 5.0, "prompt_tokens_per_s": 1.0}
    fast = Trial(
        backend="openvino", recipe="given", lanes=1, slots=48, **{**rates, "answer_tokens_per_s": 9.0}
    )
    slow = Trial(backend="llama_cpp", recipe="given", lanes=2, slots=24, **rates)
    other = Trial(
        backend="llama_cpp", recipe="q4_0", lanes=1, slots=8, **{**rates, "answer_tokens_per_s": 99.0}
    )
    found = Calibration(cpu=cpu_name(), cores=2, model_bytes=1000, trials=(slow, fast, other))
    write(found, calibration_path(model))
    chosen = resolve(auto, model)
    assert (chosen.backend, chosen.lanes, chosen.slots) == ("openvino", 1, 48)
    named = resolve(auto.model_copy(update={"backend": "llama_cpp"}), model)
    assert (named.backend, named.lanes, named.slots) == ("llama_cpp", 2, 24)
    tuned = tmp_path / "tuned" / "m.gguf"
    tuned.parent.mkdir()
    tuned.write_bytes(b"x" * 1009)
    assert resolve(auto, tuned) == plain
    named = auto.model_copy(update={"calibration": str(calibration_path(model))})
    assert resolve(named, tuned).backend == "openvino"
    model.write_bytes(b"x" * 1011)
    assert resolve(auto, model) == plain
    calibration_path(model).write_text("{")
    assert resolve(auto, model) == plain


def test_a_calibration_serves_every_quantisation_that_it_has_measured(tmp_path: Path) -> None:
    from serving.engine.calibration import Calibration, Quality, Trial, cpu_name

    def trial(recipe: str, rate: float, slots: int = 24) -> Trial:
        return Trial(
            backend="llama_cpp", recipe=recipe, lanes=2, slots=slots,
            answer_tokens_per_s=rate, prompt_tokens_per_s=1.0,
        )  # fmt: skip

    def quality(recipe: str, agreement: float, megabytes: float) -> Quality:
        return Quality(recipe=recipe, perplexity=9.0, greedy_agreement=agreement, megabytes=megabytes)

    found = Calibration(
        cpu=cpu_name(),
        cores=2,
        model_bytes=98_000_000,
        trials=(
            trial("given", 5),
            trial("given", 6, 32),
            trial("q4_0", 9),
            trial("q4_0-pure", 12),
            trial("bf16", 8),
        ),
        quality=(
            quality("f16", 1.0, 270),
            quality("q4_0", 0.86, 91),
            quality("q4_0-pure", 0.74, 77),
            quality("bf16", 0.98, 269),
        ),
    )
    assert found.recipes_of(98_100_000) == {"given"}
    assert found.recipes_of(91_000_000) == {"q4_0"}
    assert found.recipes_of(50_000_000) == frozenset()
    best = found.best(98_000_000)
    assert best is not None
    assert best.slots == 32
    assert found.best(91_000_000) == trial("q4_0", 9)
    assert found.best(91_000_000, "openvino") is None
    assert found.fastest_recipe(0.8) == "q4_0"
    assert found.fastest_recipe(0.7) == "q4_0-pure"
    assert found.fastest_recipe(0.9) == "bf16"
    assert found.fastest_recipe(0.9, "openvino") is None
    assert found.fastest_recipe(0.99) is None  # f16 was not timed


def test_attention_is_fused_where_it_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.engine.llamacpp.context import resolve_flash_attention, resolve_kv_type

    # Where a build adds up f16 slowly, bf16 is the default, which is worth it in short contexts.
    for slow, kv_type, in_long in ((True, "bf16", False), (False, "f16", True)):
        monkeypatch.setattr(
            "serving.engine.llamacpp.context.sums_in_half_precision", lambda found=slow: found
        )
        assert resolve_kv_type("auto") == kv_type
        assert resolve_kv_type("f32") == "f32"
        assert resolve_flash_attention(EngineSettings(context_tokens=1024)) is True
        assert resolve_flash_attention(EngineSettings(context_tokens=1025)) is in_long
        assert resolve_flash_attention(EngineSettings(kv_type="f16")) is in_long
        assert resolve_flash_attention(EngineSettings(kv_type="bf16", context_tokens=1025)) is False
        assert resolve_flash_attention(EngineSettings(kv_type="q8_0")) is True
        assert resolve_flash_attention(EngineSettings(gpu_layers=-1)) is True
        assert resolve_flash_attention(EngineSettings(context_tokens=64, flash_attention=False)) is False
        assert resolve_flash_attention(EngineSettings(context_tokens=9000, flash_attention=True)) is True


def test_openvino_takes_a_quarter_of_the_free_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.engine.openvino import room

    settings = EngineSettings(backend="openvino", slots=256, context_tokens=512)
    for free_gb, taken in ((40, 2), (6, 1), (3, 0)):
        monkeypatch.setattr(room, "free_memory_bytes", lambda found=free_gb: found << 30)
        assert room.cache_gb(settings, 16_000) == taken
    monkeypatch.setattr(room, "free_memory_bytes", lambda: None)
    assert room.cache_gb(settings, 16_000) == 0


def test_openvinos_cache_is_counted_in_blocks_of_a_models_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.engine.openvino import room

    metadata = {
        "general.architecture": "llama",
        "llama.block_count": "30",
        "llama.attention.head_count": "9",
        "llama.attention.head_count_kv": "3",
        "llama.embedding_length": "576",
    }
    assert room.token_bytes(metadata.get, "auto") == 30 * 3 * 2 * (64 + 8)
    assert room.token_bytes(metadata.get, "bf16") == 30 * 3 * 2 * 64 * 2
    assert room.token_bytes({**metadata, "llama.attention.key_length": "128"}.get, "f16") == 30 * 3 * 192 * 2
    monkeypatch.setattr(room, "free_memory_bytes", lambda: 5 << 30)
    found = room.Room(metadata.get, EngineSettings(backend="openvino", slots=256, context_tokens=512))
    assert (found.cache_gb, found.num_tokens) == (1, (1 << 30) // 12_960)
    found.num_tokens = 160
    small, large = (Request("a", (1,) * 60, Sampling(max_tokens=most)) for most in (4, 5))
    assert (found.needed(small), found.needed(large)) == (64, 96)
    assert [found.fits(small, [large] * number) for number in range(3)] == [True, True, False]
    assert not found.is_too_small(large)
    assert found.is_too_small(Request("b", (1,) * 160, Sampling(max_tokens=1)))
    found.num_tokens = None
    assert found.fits(small, [large] * 1000)
