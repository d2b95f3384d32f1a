"""A template for a base that has no GGUF: metadata and tokenizer out of its config and tokenizer files.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's loader.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_jobs.errors import ModelError
from ray_jobs.export.families import Family, check_window, family_of, full_config
from ray_jobs.export.rope import (
    head_size,
    longrope_attention_factor,
    rope_settings,
    rope_tensors,
    rotary_size,
)
from ray_jobs.export.vocabulary import Vocabulary, read_vocabulary

WINDOW_STEP = 6
"""Gemma 3: every sixth layer sees everything; llama.cpp takes that for granted."""
ROPELESS_STEP = 4
"""SmolLM3: every fourth layer has no positions; likewise."""


def template_from_hf(hf_dir: Path, out: Path, name: str) -> Path:
    """`out`, written once: a GGUF with the metadata of the model in `hf_dir` and no weights.

    `name` becomes `general.name`, by which llama.cpp knows quirks of some tokenizers (Phi-3).

    Raises ModelError, naming what it is, for what llama.cpp or this project cannot represent.
    """
    if out.is_file():
        return out
    config = full_config(hf_dir)
    family = family_of(config, str(hf_dir))
    _check(config, hf_dir)
    tensors = rope_tensors(config, str(hf_dir))
    vocabulary = read_vocabulary(hf_dir, int(config["vocab_size"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        _write(beside, hf_dir, name, config, family, vocabulary, tensors)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    return out


def _write(
    path: Path,
    hf_dir: Path,
    name: str,
    config: Mapping[str, Any],
    family: Family,
    vocabulary: Vocabulary,
    tensors: Mapping[str, Any],
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, family.architecture)
    writer.add_type("model")
    writer.add_name(name)
    for key, value in _settings(config, family).items():
        _add(writer, f"{family.architecture}.{key}", value)
    _add_vocabulary(writer, vocabulary)
    _add_tokenizer(writer, hf_dir, len(vocabulary.tokens))
    for tensor, values in tensors.items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _settings(config: Mapping[str, Any], family: Family) -> dict[str, int | float | str]:
    """`<architecture>.` keys."""
    rope, heads = rope_settings(config), int(config["num_attention_heads"])
    settings: dict[str, int | float | str] = {
        "block_count": int(config["num_hidden_layers"]),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.key_length": head_size(config),
        "attention.value_length": head_size(config),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": rotary_size(config),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": int(config["vocab_size"]),
    }
    if rope["rope_type"] == "linear":
        settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "longrope":
        old_context = int(rope["original_max_position_embeddings"])
        settings["rope.scaling.original_context_length"] = old_context
        settings["rope.scaling.attn_factor"] = longrope_attention_factor(config)
    if family.architecture == "phi3":
        settings["attention.sliding_window"] = int(config.get("sliding_window") or 0)
    if family.architecture == "gemma3":
        settings["attention.sliding_window"] = int(config["sliding_window"])
    return settings


def _check(config: Mapping[str, Any], hf_dir: Path) -> None:
    """Refuses by name what the architecture in llama.cpp has no setting for."""
    check_window(config, str(hf_dir))
    kind = config["model_type"]
    reason = None
    if kind == "smollm3" and config.get("no_rope_layer_interval", ROPELESS_STEP) != ROPELESS_STEP:
        reason = f"no_rope_layer_interval other than {ROPELESS_STEP}"
    elif kind == "gemma3_text":
        reason = _unlike_gemma3(config)
    if reason:
        raise ModelError(f"{hf_dir}: {kind} with {reason} has no form in GGUF that this project writes")


def _unlike_gemma3(config: Mapping[str, Any]) -> str | None:
    kinds = config.get("layer_types") or []
    full = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    if kinds and full != list(range(WINDOW_STEP - 1, len(kinds), WINDOW_STEP)):
        return f"full attention not in every {WINDOW_STEP}th layer"
    if config.get("query_pre_attn_scalar") != head_size(config):
        return "query_pre_attn_scalar other than head_dim"
    if config.get("attn_logit_softcapping") or config.get("final_logit_softcapping"):
        return "soft-capped logits"
    return None


def _add(writer: Any, key: str, value: int | float | str) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.space_prefix)


def _add_tokenizer(writer: Any, hf_dir: Path, size: int) -> None:
    """Special tokens and the chat template; `size` tokens have a row in the embedding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True, trust_remote_code=False)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id >= size:
        raise ModelError(f"{hf_dir}: {tokenizer.eos_token} ends its answers, and has no row in the embedding")
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None and number < size:
            add(number)
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(starts)
    writer.add_chat_template(chat_template(tokenizer.chat_template, hf_dir))


def chat_template(templates: str | Mapping[str, str], hf_dir: Path) -> str:
    """That of plain chats; some tokenizers name several, among them some for tools or documents."""
    if isinstance(templates, str):
        return templates
    if "default" not in templates:
        raise ModelError(f"{hf_dir}: of its chat templates ({', '.join(templates)}) none is named default")
    return templates["default"]
