"""Attention within packed pairs: an answer sees its prompt and itself, and nothing of other answers or pairs.

Three ways to compute it: on GPUs FlexAttention, one kernel for the whole row that skips what is not
seen; elsewhere, and where torch.compile does not work, PyTorch's own attention pair by pair; and in
fused layers on CPU matrix products over blocks (attention_blocks.py).

Legend: T tokens of a row, H query heads, K key heads, C channels of a head.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
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
    if query_1HTC.device.type == "cuda" and _compiled_flex_attention() is not None:
        return attend_row(query_1HTC, key_1KTC, value_1KTC, spans, scaling, window)
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


def attend_row(
    query_1HTC: Tensor,
    key_1KTC: Tensor,
    value_1KTC: Tensor,
    spans: tuple[Span, ...],
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """One FlexAttention call for the row; uncompiled (on CPU) it is right but slow."""
    from torch.nn.attention.flex_attention import flex_attention

    attention = (_compiled_flex_attention() if query_1HTC.is_cuda else None) or flex_attention
    mask = _block_mask(spans, window, query_1HTC.device)
    out: Tensor = attention(query_1HTC, key_1KTC, value_1KTC, block_mask=mask, scale=scaling, enable_gqa=True)
    return out


@cache
def _compiled_flex_attention() -> Any:
    """FlexAttention compiled, or None where torch.compile has no working compiler."""
    from torch.nn.attention.flex_attention import flex_attention

    from ray_jobs.orpo.kernels import why_not_compiled

    return None if why_not_compiled() else torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=4)  # the layers of a forward pass share one mask, or one with and one without a window
def _block_mask(spans: tuple[Span, ...], window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = [length for span in spans for length in (span.num_prompt, span.num_chosen, span.num_rejected)]
    part_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    position_T = torch.tensor([position for span in spans for position in _positions(span)], device=device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = part_T[query], part_T[key]
        is_own_prompt = other == own - own % 3
        seen = (key <= query) & ((own == other) | is_own_prompt)
        return seen if window is None else seen & (position_T[query] - position_T[key] < window)

    return create_block_mask(sees, None, None, len(part_T), len(part_T), device=device)


def _positions(span: Span) -> list[int]:
    """Positions of a pair's tokens: the rejected answer takes those after the prompt again."""
    chosen = range(span.num_prompt + span.num_chosen)
    return [*chosen, *range(span.num_prompt, span.num_prompt + span.num_rejected)]
