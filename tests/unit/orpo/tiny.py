"""Small models, tokenizers and pairs, made on the spot."""

import random
from typing import Any

import torch

from ray_jobs.orpo.tokens import PairTokens
from ray_jobs.records import Message, Pair

VOCABULARY = 300

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(chat_template: str | None = CHATML) -> Any:
    """One token a byte, and three control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate(control + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    fast.chat_template = chat_template
    return fast


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """Two layers, grouped query heads, tied embeddings; weights large enough that all of it matters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).train()


def with_adapters(model: Any, rank: int = 4, seed: int = 1, **changes: Any) -> Any:
    """LoRA, by default on all linear layers, away from its start where `up` is 0 and hides mistakes."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    options = {"target_modules": "all-linear"} | changes
    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", **options)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def random_pairs(count: int, seed: int = 0, longest: int = 40) -> list[PairTokens]:
    draw = random.Random(seed)

    def ids() -> tuple[int, ...]:
        return tuple(draw.randrange(3, 259) for _ in range(draw.randint(1, longest)))

    return [PairTokens(f"pair-{index}", ids(), ids(), ids()) for index in range(count)]


def text_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs that a model can learn to tell apart: the chosen answer is upper case."""
    words = ["red", "blue", "tree", "stone", "river", "cloud", "seven", "lamp"]
    draw = random.Random(seed)
    pairs = []
    for index in range(count):
        text = " ".join(draw.choices(words, k=draw.randint(2, 5)))
        pairs.append(Pair(f"p{index}", "made", (Message("user", f"Say {text}"),), text.upper(), text))
    return pairs


def gradient(model: Any) -> torch.Tensor:
    """All gradients of trained parameters as one fp64 vector."""
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])


def save_tiny_model(folder: Any, **changes: Any) -> str:
    """A model folder as users have them."""
    tiny_llama(**changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
