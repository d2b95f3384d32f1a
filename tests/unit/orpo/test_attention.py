"""All ways to compute attention in packed pairs against a dense mask in fp64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ray_jobs.orpo import attention_blocks
from ray_jobs.orpo.attention import attend_pairs
from ray_jobs.orpo.attention_blocks import BlockAttention, blocks_of
from ray_jobs.orpo.packing import pack
from tests.unit.orpo.tiny import random_pairs

SPANS = pack(random_pairs(4, longest=30)).spans
NUM_TOKENS = SPANS[-1].end
SCALE = 0.3
Attention = Callable[..., Tensor]


def dense(query: Tensor, key: Tensor, value: Tensor, window: int = 1000) -> Tensor:
    """[T, H, C] from [T, H, C] and [T, K, C], with every score."""
    sees = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    position = pack(random_pairs(4, longest=30)).position_ids_T
    for span in SPANS:
        for q in range(span.start, span.end):
            own = span.start if q < span.rejected else span.rejected
            sees[q, span.start : min(q + 1, span.answers)] = True
            sees[q, own : q + 1] = True
    sees &= position[:, None] - position < window
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = torch.einsum("qhc,khc->hqk", query, key) * SCALE
    return torch.einsum("hqk,khc->qhc", scores.masked_fill(~sees, -torch.inf).softmax(-1), value)


def in_transformers_layout(attend: Attention) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        return attend(query, key, value, SPANS, SCALE)[0].transpose(0, 1)

    return call


def blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    no_turn = torch.ones(NUM_TOKENS, 8, dtype=query.dtype), torch.zeros(NUM_TOKENS, 8, dtype=query.dtype)
    out: Tensor = BlockAttention.apply(query, key, value, *no_turn, SPANS, SCALE)
    return out


WAYS = {
    "pairs": in_transformers_layout(attend_pairs),
    "blocks": blocks,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_output_and_gradients_equal_dense_attention(
    way: str, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_blocks, "BLOCK", 16)
    torch.manual_seed(0)
    shapes = [(NUM_TOKENS, heads, 8) for heads in (6, key_heads, key_heads)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    exact = [x.detach().double().requires_grad_(True) for x in inputs]
    grad = torch.randn(NUM_TOKENS, 6, 8)
    got, wanted = WAYS[way](*inputs), dense(*exact)
    got.backward(grad)
    wanted.backward(grad.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
    for x, y in zip(inputs, exact, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [1, 5, 40, 1000])
def test_a_window_hides_what_lies_further_back(window: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(NUM_TOKENS, heads, 8) for heads in (6, 2, 2)]
    query, key, value = (x.transpose(0, 1)[None] for x in inputs)
    with torch.no_grad():
        got = attend_pairs(query, key, value, SPANS, SCALE, window)[0].transpose(0, 1)
    torch.testing.assert_close(got, dense(*inputs, window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_blocks_cover_every_query_once(size: int) -> None:
    covered = [query for block in blocks_of(SPANS, 2, size) for query in range(block.start, block.stop)]
    assert covered == list(range(NUM_TOKENS))
