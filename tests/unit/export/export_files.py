"""Small files to export: a GGUF template, a model's weights, an adapter."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 12,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
LAYER = "model.layers.0"
SHAPES = {
    "model.embed_tokens.weight": (12, 8),
    f"{LAYER}.self_attn.q_proj.weight": (8, 8),
    f"{LAYER}.self_attn.k_proj.weight": (4, 8),
    f"{LAYER}.self_attn.v_proj.weight": (4, 8),
    f"{LAYER}.self_attn.o_proj.weight": (8, 8),
    f"{LAYER}.mlp.gate_proj.weight": (16, 8),
    f"{LAYER}.mlp.up_proj.weight": (16, 8),
    f"{LAYER}.mlp.down_proj.weight": (8, 16),
    f"{LAYER}.input_layernorm.weight": (8,),
    f"{LAYER}.post_attention_layernorm.weight": (8,),
    "model.norm.weight": (8,),
}


def random_state(seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(size=shape).astype(np.float16).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def write_template(
    path: Path, tensors: dict[str, Any] | None = None, *, architecture: str = "llama", **changes: Any
) -> Path:
    """A GGUF with Llama's keys, `changes` among them, and any tensors."""
    settings = {
        "block_count": 1, "embedding_length": 8, "attention.head_count": 2, "attention.head_count_kv": 1,
        **changes,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Ünïted 🦙")
    for key, value in settings.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_file_type(7)
    writer.add_token_list(["<s>", "a", "b"])
    writer.add_token_scores([0.0, -1.5, 2.25])
    writer.add_chat_template("{{ messages }}")
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_adapter(folder: Path, weights: dict[str, Any], **changes: Any) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": True, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
