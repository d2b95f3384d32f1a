"""A randomly initialised model of Llama-3.2-1B's shape with the bundled model's vocabulary.

What it says means nothing; what it costs is what the real one costs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import bundled_model, cached

NAME = "random-llama-3.2-1b"
NUM_VOCAB, WIDTH, HIDDEN, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 128_256, 2048, 8192, 16, 32, 8
"""Of https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct, its config.json."""


def random_1b(recipe: str) -> Path:
    """The model in a quantisation, made once (2.5 GB meanwhile) and kept in the user's cache folder."""
    from serving.engine.llamacpp.quantize import quantize

    target = cached(f"{NAME}.{recipe}.gguf")
    if not target.exists():
        full = cached(f"{NAME}.f16.gguf")
        full.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_f16(full)
            quantize(full, target, recipe, num_threads=os.cpu_count() or 1)
        finally:
            full.unlink(missing_ok=True)
    return target


def _write_f16(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _copy_tokenizer(gguf, gguf.GGUFReader(bundled_model()), writer)
    writer.add_context_length(131_072)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // NUM_HEADS)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(NUM_VOCAB)
    draw = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)
    for name, shape in _shapes().items():
        scale = np.float32(1.0 if len(shape) == 1 else 0.02)
        values = np.ones(shape, np.float32) if len(shape) == 1 else np.resize(draw * scale, shape)
        writer.add_tensor(name, values if len(shape) == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(gguf: Any, source: Any, writer: Any) -> None:
    """All of the tokenizer's fields; the vocabulary is filled up with tokens that no text has."""
    filling = NUM_VOCAB - len(source.fields["tokenizer.ggml.tokens"].data)
    extra = {
        "tokenizer.ggml.tokens": [f"<|unused_{index}|>" for index in range(filling)],
        "tokenizer.ggml.token_type": [int(gguf.TokenType.UNUSED)] * filling,
    }
    for name, found in source.fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = found.contents()
        if isinstance(value, list):
            writer.add_array(name, value + extra.get(name, []))
        else:
            writer.add_key_value(name, value, found.types[0])


def _shapes() -> dict[str, tuple[int, ...]]:
    kv_width = WIDTH // NUM_HEADS * NUM_KV_HEADS
    layer = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (kv_width, WIDTH),
        "attn_v": (kv_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (HIDDEN, WIDTH),
        "ffn_up": (HIDDEN, WIDTH),
        "ffn_down": (WIDTH, HIDDEN),
    }
    layers = {f"blk.{i}.{name}.weight": shape for i in range(NUM_LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (NUM_VOCAB, WIDTH), **layers, "output_norm.weight": (WIDTH,)}
