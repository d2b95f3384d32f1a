"""Small randomly initialised models of each family, with tokenizers of its kind."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ray_jobs.export.parity import CHATS
from ray_jobs.export.vocabulary import PATTERNS

VOCABULARY = 640
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>", "<|end|>", "<|endoftext|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "head_dim": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.1 * n for n in range(8)],
    "long_factor": [1.0 + 0.7 * n for n in range(8)], "original_max_position_embeddings": 512,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-3.2": ("Llama", "llama-bpe", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-3.1-untied": ("Llama", "llama-bpe", {"rope_parameters": LLAMA3_ROPE}),
    "smollm2": ("Llama", "smollm", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", "gpt-2", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", "tekken", {"sliding_window": None}),
    "mistral-sentencepiece": ("Mistral", "default", {"sliding_window": None}),
    "qwen2.5": ("Qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "qwen2", {"head_dim": 32}),
    "phi-3": ("Phi3", "phi-3", {}),
    "phi-3.5-longrope": (
        "Phi3",
        "phi-3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 512},
    ),
    "gemma-3": (
        "Gemma3Text",
        "default",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7},
    ),
    "smollm3": ("SmolLM3", "llama-bpe", {"num_hidden_layers": 5}),
}  # fmt: skip
"""Name -> classes of transformers, kind of tokenizer, what differs from SHAPE."""


def make_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Saves a model of a family in `folder`; weights, norms and biases are random."""
    name, pre, changes = FAMILIES[family]
    settings = {**SHAPE, **changes}
    if name in ("Llama", "Mistral", "Qwen2", "Phi3"):
        settings["head_dim"] = SHAPE["head_dim"]
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=weight.detach().mean().item(), std=0.1)
    model.save_pretrained(folder)
    make_tokenizer(pre).save_pretrained(folder)
    return folder


def make_tokenizer(pre: str) -> PreTrainedTokenizerFast:
    sentencepiece = pre in ("default", "phi-3")
    tokenizer = _sentencepiece(strips=pre == "phi-3") if sentencepiece else _byte_level(pre)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


def _texts() -> list[str]:
    return [message["content"] for chat in CHATS for message in chat] * 4


def _byte_level(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        pattern = next(pattern for pattern, name in PATTERNS.items() if name == pre)
        words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 40,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _sentencepiece(strips: bool) -> Tokenizer:
    """`strips`: control tokens swallow white space to their right, as Phi-3's do."""
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 300, limit_alphabet=80, show_progress=False)
    words = [word for text in _texts() for word in text.replace(" ", " ▁").split(" ")]
    learner.train_from_iterator(words, trainer)
    learnt = json.loads(learner.to_str())["model"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*SPECIAL, *byte_tokens, *sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)]
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    kept = ("<unk>", "<s>", "<|endoftext|>")
    tokenizer.add_special_tokens(
        [AddedToken(token, rstrip=strips and token not in kept, normalized=False) for token in SPECIAL]
    )
    return tokenizer
