"""Attention of packed pairs by FlashAttention's kernels for sequences of unlike lengths, on GPUs.

A pair is two sequences: its prompt with the chosen answer, and its rejected answer as queries that see the
prompt and itself. So the prompt's keys are laid down twice, and nothing else is computed or kept twice.
FlashAttention aligns the causal mask at the end of a sequence's keys (Dao 2023, since version 2.1), which is
what a rejected answer behind its prompt takes.

Legend: T tokens of a row, S keys with the prompts laid down twice, H query heads, K key heads, C channels of
a head.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_jobs.orpo import kernels
from ray_jobs.orpo.packing import Span, to_device

LARGEST_HEAD = 256
"""Channels of a head that the kernels can take."""


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a row lie: their first queries and keys, and one past the last."""

    query_start: Tensor
    key_start: Tensor
    longest_query: int
    longest_key: int
    token_S: Tensor
    """The token of the row that each key belongs to."""
    own_T: Tensor
    """The key that is each token's own."""
    prompt_P: Tensor
    """The prompts' tokens, and `again_P` the keys that are their second copies."""
    again_P: Tensor
    again_T: Tensor
    """The key that is each token's second copy; -1 for tokens of answers."""

    def keys(self, x_TKC: Tensor) -> Tensor:
        return x_TKC.index_select(0, self.token_S)

    def add_keys(self, grad_SKC: Tensor) -> Tensor:
        """Gradient in the row's tokens from that in the keys."""
        grad_TKC = grad_SKC.index_select(0, self.own_T)
        return grad_TKC.index_add_(0, self.prompt_P, grad_SKC.index_select(0, self.again_P))


@lru_cache(maxsize=2)  # all layers of a forward and backward pass share them
def sequences_of(spans: tuple[Span, ...], device: torch.device) -> Sequences:
    lengths = [
        length
        for span in spans
        for length in (
            (span.rejected - span.start,) * 2,
            (span.num_rejected, span.num_prompt + span.num_rejected),
        )
    ]
    queries, keys = zip(*lengths, strict=True)
    first_key = 0
    tokens, own, prompts, again = [], [], [], []
    for span in spans:
        prompt, whole = np.arange(span.start, span.answers), np.arange(span.start, span.rejected)
        second = first_key + len(whole)
        own += [whole - span.start + first_key, np.arange(span.num_rejected) + second + span.num_prompt]
        again.append(prompt - span.start + second)
        prompts.append(prompt)
        tokens += [whole, prompt, np.arange(span.rejected, span.end)]
        first_key = second + span.num_prompt + span.num_rejected
    again_T = np.full(spans[-1].end, -1)
    again_T[np.concatenate(prompts)] = np.concatenate(again)
    numbers = [*(np.concatenate(parts) for parts in (tokens, own, prompts, again)), again_T]
    query_start, key_start = (
        to_device(np.cumsum([0, *counts]), device).to(torch.int32) for counts in (queries, keys)
    )
    token_S, own_T, prompt_P, again_P, again_T = (to_device(array, device) for array in numbers)
    return Sequences(
        query_start, key_start, max(queries), max(keys), token_S, own_T, prompt_P, again_P, again_T
    )


def has_kernel(query: Tensor, width: int) -> bool:
    """Whether FlashAttention's kernels take queries of this type, in heads so wide, on their device."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and width <= LARGEST_HEAD
        and width % 8 == 0
        and _has_flash_attention(query.device)
    )


@lru_cache
def _has_flash_attention(device: torch.device) -> bool:
    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return bool(torch.backends.cuda.is_flash_attention_available()) and capability >= (8, 0)


@dataclass(frozen=True)
class Kernel:
    """FlashAttention's two passes over the sequences of a row."""

    sequences: Sequences
    scale: float | None
    window: int | None

    @property
    def options(self) -> dict[str, Any]:
        if self.window is None:
            return {"scale": self.scale}
        return {"scale": self.scale, "window_size_left": self.window - 1, "window_size_right": 0}

    def forward(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor) -> tuple[Tensor, ...]:
        """What is attended to, and what the backward pass needs of it."""
        out_THC, *kept, _ = torch.ops.aten._flash_attention_forward(
            q_THC, k_SKC, v_SKC, *self._bounds, 0.0, True, False, **self.options
        )
        return out_THC, *kept

    def backward(
        self,
        grad_THC: Tensor,
        q_THC: Tensor,
        k_SKC: Tensor,
        v_SKC: Tensor,
        out_THC: Tensor,
        lse: Tensor,
        *random: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients in queries, keys and values."""
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad_THC, q_THC, k_SKC, v_SKC, out_THC, lse, *self._bounds, 0.0, True, *random, **self.options
        )
        return grads

    @property
    def _bounds(self) -> tuple[Tensor, Tensor, int, int]:
        where = self.sequences
        return where.query_start, where.key_start, where.longest_query, where.longest_key


class VarlenAttention(torch.autograd.Function):
    """q [T, H, C], k and v [T, K, C] to [T, H, C]."""

    @staticmethod
    def forward(
        ctx: Any,
        q_THC: Tensor,
        k_TKC: Tensor,
        v_TKC: Tensor,
        spans: tuple[Span, ...],
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        kernel = Kernel(sequences_of(spans, q_THC.device), scale, window)
        keys = kernel.sequences.keys
        out_THC, *kept = kernel.forward(q_THC, keys(k_TKC), keys(v_TKC))
        ctx.save_for_backward(q_THC, k_TKC, v_TKC, out_THC, *kept)
        ctx.kernel = kernel
        return out_THC

    @staticmethod
    def backward(ctx: Any, grad_THC: Tensor) -> tuple[Tensor | None, ...]:
        q_THC, k_TKC, v_TKC, *kept = ctx.saved_tensors
        where = ctx.kernel.sequences
        grad_q, grad_k, grad_v = ctx.kernel.backward(
            grad_THC.contiguous(), q_THC, where.keys(k_TKC), where.keys(v_TKC), *kept
        )
        return grad_q, where.add_keys(grad_k), where.add_keys(grad_v), None, None, None


class RotaryVarlenAttention(torch.autograd.Function):
    """Rotary embedding and attention: all heads' queries, keys and values side by side, [T, (H + 2 K) C], to
    [T, H C]."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_TE: Tensor,
        cos_TC: Tensor,
        sin_TC: Tensor,
        num_queries: int,
        spans: tuple[Span, ...],
        scale: float | None,
    ) -> Tensor:
        kernel = Kernel(sequences_of(spans, qkv_TE.device), scale, None)
        width = cos_TC.shape[1]
        num_keys = (qkv_TE.shape[1] // width - num_queries) // 2
        turned_TE = kernels.run(kernels.rotate_heads, qkv_TE, cos_TC, sin_TC, num_queries + num_keys)
        ctx.kernel, ctx.sizes = kernel, (num_queries, num_keys, width)
        out_THC, *kept = kernel.forward(*_sides(turned_TE, kernel.sequences, ctx.sizes))
        ctx.save_for_backward(turned_TE, cos_TC, sin_TC, out_THC, *kept)
        return out_THC.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        turned_TE, cos_TC, sin_TC, out_THC, *kept = ctx.saved_tensors
        where = ctx.kernel.sequences
        sides = _sides(turned_TE, where, ctx.sizes)
        grads = ctx.kernel.backward(grad_TD.view(out_THC.shape), *sides, out_THC, *kept)
        grad_TE = kernels.run(kernels.rotate_heads_back, *grads, where.own_T, where.again_T, cos_TC, sin_TC)
        return grad_TE, None, None, None, None, None


def _sides(turned_TE: Tensor, where: Sequences, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of all tokens; keys and values with the prompts' laid down twice."""
    num_queries, num_keys, width = sizes
    heads_THC = turned_TE.unflatten(1, (-1, width))
    keys_and_values = heads_THC[:, num_queries:].index_select(0, where.token_S)
    return heads_THC[:, :num_queries], keys_and_values[:, :num_keys], keys_and_values[:, num_keys:]
