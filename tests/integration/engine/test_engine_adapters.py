"""LoRA adapters over one base: batched together, each answering as it does alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.engine import Engine, EngineSettings, ModelMismatch, Request, Sampling

HIDDEN, RANK = 576, 4


def write_adapter(path: Path, *, seed: int, hidden: int = HIDDEN) -> str:
    """A random LoRA adapter of the first layers' query and output projections, in GGUF."""
    import gguf

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(4):
        for name in ("attn_q", "attn_output"):
            a = rng.normal(0, 0.1, (RANK, hidden)).astype(np.float32)
            b = rng.normal(0, 0.1, (hidden, RANK)).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_adapters_share_a_base_and_do_not_mix(model_path: Path, tmp_path: Path) -> None:
    adapters = {
        name: write_adapter(tmp_path / f"{name}.gguf", seed=seed) for seed, name in enumerate(["x", "y"])
    }
    settings = EngineSettings(pin=False, slots=6, context_tokens=256, adapters=adapters)
    with Engine.open(model_path, settings) as engine:
        prompt = engine.chat.render([{"role": "user", "content": "Name a colour."}])
        sampling = Sampling(max_tokens=5, top_logprobs=0)

        def ask(*names: str | None) -> list[float]:
            results = engine.generate(
                [Request(str(i), prompt, sampling, adapter=n) for i, n in enumerate(names)]
            )
            assert all(result.logprobs for result in results)
            return [result.logprobs[0].logprob for result in results if result.logprobs]

        alone = {name: ask(name)[0] for name in (None, "x", "y")}
        assert len({round(value, 3) for value in alone.values()}) == 3
        mixed = ask(None, "x", "y", "x", None, "y")
        for name, value in zip((None, "x", "y", "x", None, "y"), mixed, strict=True):
            assert value == pytest.approx(alone[name], abs=0.05)


def test_an_adapter_for_another_base_is_refused(model_path: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "wide.gguf", seed=1, hidden=640)
    with pytest.raises(ModelMismatch, match="'wide'"):
        Engine.open(
            model_path, EngineSettings(pin=False, slots=1, context_tokens=256, adapters={"wide": path})
        )


def test_deterministic_answers_of_adapters_depend_on_nothing_else(model_path: Path, tmp_path: Path) -> None:
    adapters = {
        name: write_adapter(tmp_path / f"{name}.gguf", seed=seed) for seed, name in enumerate(["x", "y"])
    }
    settings = EngineSettings(
        pin=False, slots=4, context_tokens=384, batch_tokens=128, adapters=adapters, deterministic=True
    )
    with Engine.open(model_path, settings) as engine:
        texts = ("Name a colour.", "Name a fruit.", "A river runs to the sea. " * 20)
        prompts = [engine.chat.render([{"role": "user", "content": text}]) for text in texts]
        sampling = Sampling(max_tokens=6, top_logprobs=1)
        requests = [
            Request(f"{name}-{number}", prompt, sampling, adapter=name)
            for number, prompt in enumerate(prompts)
            for name in (None, "x", "y")
        ]
        alone = [engine.generate([request])[0] for request in requests]
        for together in (engine.generate(requests), engine.generate(requests[::-1])[::-1]):
            assert [one.tokens for one in together] == [one.tokens for one in alone]
            assert [one.logprobs for one in together] == [one.logprobs for one in alone]
    assert len({one.logprobs[0].logprob for one in alone if one.logprobs}) == len(alone), "adapters matter"
