"""How much GPU memory a training needs, worked out from sizes alone.

Bytes of one worker, at its highest. Activations are counted for the longest row; what CUDA and the allocator
take besides is RESERVE.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_jobs.orpo.settings import LoraSettings, TrainingSettings

GIB = 2**30
CONTEXT_BYTES = 0.75 * GIB
"""CUDA's context with its kernels, and the libraries' workspaces."""
FRAGMENTED = 0.1
"""Share of the rest that the allocator holds and cannot use."""
LOGITS_BYTES = 512 * 2**20
"""Logits that exist at one time on a GPU (logprobs.CHUNK_BYTES)."""
FUSED_FAMILIES = frozenset({"llama", "mistral", "qwen2"})
"""Architectures (`model_type`) whose decoder layer is RMS norm, rotary attention and SwiGLU."""
UNFUSED = 3.0
"""What layers as transformers writes them keep for the backward pass, in times of what fused ones keep."""
WITH_DORA = 5.0
"""The same with DoRA, which keeps every layer's output with and without its adapter."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, as its config.json has them."""

    model_type: str
    hidden: int
    layers: int
    feed_forward: int
    query: int
    """Heads x channels of a head."""
    key: int
    """Key heads x channels of a head; values are as many."""
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> tuple[tuple[str, int, int], ...]:
        """Name, inputs and outputs of a layer's matrices."""
        hidden, inner = self.hidden, self.feed_forward
        return (
            ("q_proj", hidden, self.query),
            ("k_proj", hidden, self.key),
            ("v_proj", hidden, self.key),
            ("o_proj", self.query, hidden),
            ("gate_proj", hidden, inner),
            ("up_proj", hidden, inner),
            ("down_proj", inner, hidden),
        )

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(inputs * outputs for _, inputs, outputs in self.linears)

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter_weights(self, lora: LoraSettings) -> int:
        names = lora.target_modules
        chosen = [one for one in self.linears if names == "all-linear" or one[0] in names]
        return self.layers * lora.rank * sum(inputs + outputs for _, inputs, outputs in chosen)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The sizes in a config.json; raises KeyError when one is missing."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    width = int(config.get("head_dim") or hidden // heads)
    return Shape(
        str(config["model_type"]),
        hidden,
        int(config["num_hidden_layers"]),
        int(config["intermediate_size"]),
        heads * width,
        int(config.get("num_key_value_heads") or heads) * width,
        int(config["vocab_size"]),
        bool(config.get("tie_word_embeddings", False)),
    )


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one worker by what they hold."""

    weights: float
    trained: float
    """Gradients, optimiser state and copies of what is trained."""
    activations: float
    logits: float

    @property
    def total(self) -> float:
        held = self.weights + self.trained + self.activations + self.logits
        return CONTEXT_BYTES + held * (1 + FRAGMENTED)


def training_memory(shape: Shape, settings: TrainingSettings, num_workers: int = 1) -> TrainingMemory:
    width = 4 if settings.precision == "fp32" else 2
    weights, trained = _of_weights(shape, settings, width, num_workers)
    return TrainingMemory(weights, trained, _activations(shape, settings, width), _logits(shape, settings))


def trials_per_gpu(trial_bytes: float, gpu_bytes: float) -> int:
    """Trials that fit on a GPU together; 0 when not even one does."""
    return int(gpu_bytes // trial_bytes)


def _of_weights(
    shape: Shape, settings: TrainingSettings, width: int, num_workers: int
) -> tuple[float, float]:
    """Bytes of the weights as the forward pass reads them, and of the rest that training them takes."""
    base = shape.linear_weights + shape.embedding_weights
    lora, zero = settings.lora, (settings.deepspeed or {}).get("zero_optimization", {})
    num_trained = base if lora is None else shape.adapter_weights(lora)
    if settings.qlora:  # NF4 with quantised constants: 4.13 bits; embeddings stay as they are
        weights = shape.linear_weights * 4.13 / 8 + shape.embedding_weights * width
    else:
        weights = float(base * width)
    if settings.deepspeed is None:
        # fp32 weights, gradients and two moments, beside the rounded copies that the products take
        return weights + (num_trained * width if lora else 0), 16.0 * num_trained
    stage = int(zero.get("stage", 0))
    gradients = 2.0 * num_trained / (num_workers if stage >= 2 else 1)
    states = 12.0 * num_trained / (num_workers if stage >= 1 else 1)
    weights += num_trained * width if lora else 0
    if _offloads(zero, "optimizer"):
        states = 0.0
    if stage == 3:
        weights = 0.0 if _offloads(zero, "param") else weights / num_workers
        weights += shape.hidden * max(shape.feed_forward, shape.vocabulary) * width  # gathered for its turn
    return weights, gradients + states


def _offloads(zero: Mapping[str, Any], what: str) -> bool:
    return bool((zero.get(f"offload_{what}") or {}).get("device", "none") != "none")


def num_row_tokens(settings: TrainingSettings) -> int:
    """Tokens of the longest row: the budget, or one pair whose answers are both as long as they may be."""
    return max(settings.max_batch_tokens, 2 * settings.max_pair_tokens)


def _activations(shape: Shape, settings: TrainingSettings, width: int) -> float:
    """What the layers keep of a row for the backward pass."""
    kept = width * (2 * shape.hidden + 2 * shape.query + 2 * shape.key + 2 * shape.feed_forward)
    if settings.lora is not None:
        kept += 7 * width * settings.lora.rank
    if not _is_fused(shape, settings):
        has_dora = settings.lora is not None and settings.lora.dora
        kept = int((WITH_DORA if has_dora else UNFUSED) * kept)
    if settings.gradient_checkpointing:  # a layer's input each, and all of the one that is computed again
        per_token = shape.layers * shape.hidden * width + kept
    else:
        per_token = shape.layers * kept
    return float(num_row_tokens(settings) * per_token)


def _is_fused(shape: Shape, settings: TrainingSettings) -> bool:
    stage = (settings.deepspeed or {}).get("zero_optimization", {}).get("stage", 0)
    plain = settings.lora is None or not (settings.lora.dora or settings.lora.dropout)
    packed = settings.step == "packed" and not settings.qlora and stage != 3
    return packed and plain and shape.model_type in FUSED_FAMILIES


def _logits(shape: Shape, settings: TrainingSettings) -> float:
    """The packed step holds a chunk, with two copies of it in fp32; TRL's all positions, several times."""
    whole = 2.0 * num_row_tokens(settings) * shape.vocabulary
    return 7 * whole if settings.step == "trl" else 5 * min(whole, LOGITS_BYTES)
