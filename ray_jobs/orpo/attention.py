"""Attention within packed pairs: an answer sees its prompt and itself, and nothing of other answers or pairs.

Legend: T tokens of a row, H query heads, K key heads, C channels of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
    spans: Sequence[Span],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function in the form that transformers calls; returns [1, T, H, C]."""
    assert not (dropout and module.training), "packed attention has no dropout"
    return attend(query_1HTC, key_1KTC, value_1KTC, spans, scaling).transpose(1, 2), None


def attend(
    query_1HTC: Tensor, key_1KTC: Tensor, value_1KTC: Tensor, spans: Sequence[Span], scaling: float | None
) -> Tensor:
    """Attention for every pair of a row; returns [1, H, T, C]."""
    outputs = []
    for span in spans:
        whole = slice(span.start, span.rejected)
        outputs.append(
            scaled_dot_product_attention(
                query_1HTC[:, :, whole],
                key_1KTC[:, :, whole],
                value_1KTC[:, :, whole],
                is_causal=True,
                scale=scaling,
                enable_gqa=True,
            )
        )
        outputs.append(_attend_rejected(query_1HTC, key_1KTC, value_1KTC, span, scaling))
    return torch.cat(outputs, dim=2)


def _attend_rejected(
    query_1HTC: Tensor, key_1KTC: Tensor, value_1KTC: Tensor, span: Span, scaling: float | None
) -> Tensor:
    prompt, rejected = slice(span.start, span.answers), slice(span.rejected, span.end)
    key = torch.cat([key_1KTC[:, :, prompt], key_1KTC[:, :, rejected]], dim=2)
    value = torch.cat([value_1KTC[:, :, prompt], value_1KTC[:, :, rejected]], dim=2)
    sees = torch.ones(span.num_rejected, key.shape[2], dtype=torch.bool, device=key.device).tril(span.num_prompt)
    return scaled_dot_product_attention(
        query_1HTC[:, :, rejected], key, value, attn_mask=sees, scale=scaling, enable_gqa=True
    )
