"""How much arithmetic a training needs, and how fast the device multiplies matrices.

Counts multiply-adds as two operations, matrix products and attention only; recomputation does not count.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ray_jobs.orpo.packing import Span


@dataclass(frozen=True)
class FlopCount:
    """Matrix sizes of a model, enough to count the operations of a step."""

    linear_weights: int
    """Weights of all linear layers but the output layer."""
    adapter_weights: int
    output_weights: int
    attention_width: int
    """Layers x heads x channels of a head."""
    trains_base: bool

    def of_rows(self, spans: Sequence[Span], num_predicted: int) -> float:
        """Operations of one forward and backward pass over a row of pairs."""
        num_tokens = sum(span.end - span.start for span in spans)
        # forward, gradient of the input, and gradient of the weight where it is trained
        passes = 3 if self.trains_base else 2
        linear = 2 * num_tokens * (passes * self.linear_weights + 3 * self.adapter_weights)
        output = 2 * num_predicted * passes * self.output_weights
        # two products forward and four backward; a token sees half of its answer and all of the prompt
        seen = sum(_attended(span) for span in spans)
        return float(linear + output + 6 * 2 * seen * self.attention_width)


def _attended(span: Span) -> float:
    prompt, chosen, rejected = span.num_prompt, span.num_chosen, span.num_rejected
    return (prompt + chosen) ** 2 / 2 + rejected * prompt + rejected**2 / 2


def count_flops(causal_lm: Any) -> FlopCount:
    """The matrix sizes of a transformers model, with or without adapters on it."""
    config = causal_lm.config
    output = causal_lm.get_output_embeddings()
    linears = [
        module for module in causal_lm.modules() if isinstance(module, nn.Linear) and module is not output
    ]
    trained = [module for module in linears if module.weight.requires_grad]
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    trains_base = output.weight.requires_grad or len(trained) == len(linears)
    total = sum(map(_size, linears))
    adapters = 0 if trains_base else sum(map(_size, trained))
    return FlopCount(
        total - adapters,
        adapters,
        _size(output),
        config.num_hidden_layers * heads * head_dim,
        trains_base,
    )


def _size(linear: nn.Linear) -> int:
    """Weights of a matrix, also where this process holds a part of them (ZeRO-3) or packed ones (QLoRA)."""
    return int(linear.in_features) * int(linear.out_features)


_SIZES = {"cuda": (8192, 8192), "cpu": (256, 4096)}
_LONG_S = 0.02


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured operations per second of a large matrix product of random numbers: the best of a few.

    On a CPU as large as it takes for a product to last 20 ms, which takes a fraction of a second in all even
    where the type is emulated (bf16 on processors without it, hundreds of times slower).
    """
    size, largest = _SIZES[device.type]
    while (seconds := _product_seconds(device, dtype, size, repeats=2)) < _LONG_S and size < largest:
        size *= 2
    return float(2 * size**3 / min(seconds, _product_seconds(device, dtype, size, repeats=3)))


def _product_seconds(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    """The shortest time of a product of two square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    assert product.shape == (size, size)
    return best
