"""Attention within packed pairs: an answer sees its prompt and itself, and nothing of other answers or pairs.

Three ways to compute it: on GPUs FlashAttention's kernels for the whole row (attention_varlen.py); in
fused layers on CPU matrix products over blocks (attention_blocks.py); elsewhere PyTorch's own attention
pair by pair.

Legend: T tokens of a row, H query heads, K key heads, C channels of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ray_jobs.orpo import attention_varlen
from ray_jobs.orpo.attention_varlen import VarlenAttention
from ray_jobs.orpo.packing import Span

ATTENTION_NAME = "packed_pairs"


def register() -> None:
    """Make the attention selectable by name in transformers models."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    # the spans say who sees whom, so models need not build a mask
    AttentionMaskInterface.register(ATTENTION_NAME, lambda *_args, **_kwargs: None)


def packed_attention(
    module: torch.nn.Module,
    query_1HTC: Tensor,
    key_1KTC: Tensor,
    value_1KTC: Tensor,
    attention_mask: None,  # noqa: ARG001
    *,
    spans: tuple[Span, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function in the form that transformers calls; returns [1, T, H, C]."""
    assert not (dropout and module.training), "packed attention has no dropout"
    attended = attend(query_1HTC, key_1KTC, value_1KTC, spans, scaling, sliding_window)
    return attended.transpose(1, 2), None


def attend(
    query_1HTC: Tensor,
    key_1KTC: Tensor,
    value_1KTC: Tensor,
    spans: tuple[Span, ...],
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """Attention for every pair of a row; returns [1, H, T, C].

    With a `window` a token sees itself and the window - 1 positions before it, no further.
    """
    if window is not None and all(longest_sequence(span) <= window for span in spans):
        window = None
    if attention_varlen.has_kernel(query_1HTC, query_1HTC.shape[-1]):
        q_THC, k_TKC, v_TKC = (x[0].transpose(0, 1) for x in (query_1HTC, key_1KTC, value_1KTC))
        attended_THC: Tensor = VarlenAttention.apply(q_THC, k_TKC, v_TKC, spans, scaling, window)
        return attended_THC.transpose(0, 1)[None]
    return attend_pairs(query_1HTC, key_1KTC, value_1KTC, spans, scaling, window)


def longest_sequence(span: Span) -> int:
    """Tokens of the prompt and the longer answer."""
    return span.num_prompt + max(span.num_chosen, span.num_rejected)


def attend_pairs(
    query_1HTC: Tensor,
    key_1KTC: Tensor,
    value_1KTC: Tensor,
    spans: Sequence[Span],
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """Two calls of PyTorch's attention per pair."""
    heads_per_key = query_1HTC.shape[1] // key_1KTC.shape[1]
    key_1HTC, value_1HTC = (x.repeat_interleave(heads_per_key, dim=1) for x in (key_1KTC, value_1KTC))
    outputs = []
    for span in spans:
        whole = slice(span.start, span.rejected)
        query, key, value = (x[:, :, whole] for x in (query_1HTC, key_1HTC, value_1HTC))
        sees = None if window is None else _seen(0, query.shape[2], window, query.device)
        outputs.append(
            scaled_dot_product_attention(
                query, key, value, attn_mask=sees, is_causal=sees is None, scale=scaling
            )
        )
        outputs.append(_attend_rejected(query_1HTC, key_1HTC, value_1HTC, span, scaling, window))
    return torch.cat(outputs, dim=2)


def _seen(num_before: int, num_queries: int, window: int | None, device: torch.device) -> Tensor:
    """Which of num_before + num_queries keys each of the last num_queries tokens sees."""
    sees = torch.ones(num_queries, num_before + num_queries, dtype=torch.bool, device=device).tril(num_before)
    return sees if window is None else sees.triu(num_before - window + 1)


def _attend_rejected(
    query_1HTC: Tensor,
    key_1HTC: Tensor,
    value_1HTC: Tensor,
    span: Span,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    prompt, rejected = slice(span.start, span.answers), slice(span.rejected, span.end)
    key = torch.cat([key_1HTC[:, :, prompt], key_1HTC[:, :, rejected]], dim=2)
    value = torch.cat([value_1HTC[:, :, prompt], value_1HTC[:, :, rejected]], dim=2)
    sees = _seen(span.num_prompt, span.num_rejected, window, key.device)
    return scaled_dot_product_attention(query_1HTC[:, :, rejected], key, value, attn_mask=sees, scale=scaling)
