"""The kernels of kernels.py for GPUs, one launch each.

What torch.compile makes of them is as fast on the GPU, but each call of it costs the host some 100
microseconds, and two hundred calls a step add up to more than the step's arithmetic takes.

Rows of hidden channels are one program each; what is wider is cut into blocks. Legend: see kernels.py.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
LOGITS_BLOCK = 4096


@triton.jit
def _rms_norm(x, weight, out, rstd, eps, width, again: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    if again:
        scale = tl.load(rstd + row)
    else:
        scale = tl.rsqrt(tl.sum(values * values) / width + eps)
        tl.store(rstd + row, scale)
    weights = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, values * scale * weights, mask=inside)


@triton.jit
def _rms_norm_backward(grad, x, weight, rstd, residual, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    here = row * width + at
    scale = tl.load(rstd + row)
    unit = tl.load(x + here, mask=inside, other=0.0).to(tl.float32) * scale
    weights = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32) * weights
    along = tl.sum(scaled * unit) / width
    around = tl.load(residual + here, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + here, around + scale * (scaled - unit * along), mask=inside)


@triton.jit
def _swiglu(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _swiglu_backward(grad, gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    first = row * 2 * width + at
    gate = tl.load(gate_up + first, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + first + width, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(grad + row * width + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(out + first, given * up * sigmoid * (1 + gate - silu), mask=inside)
    tl.store(out + first + width, given * silu, mask=inside)


@triton.jit
def _rotate_heads(x, cos, sin, out, width, num_turned, head: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    within = at % head
    is_first_half = within < head // 2
    other = tl.where(is_first_half, at + head // 2, at - head // 2)
    turned = inside & (at < num_turned * head)
    values = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    others = tl.load(x + row * width + other, mask=turned, other=0.0).to(tl.float32)
    # heads that are not turned have an angle of 0
    c = tl.load(cos + row * head + within, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + row * head + within, mask=turned, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, values * c + tl.where(is_first_half, -others, others) * s, mask=inside)


@triton.jit
def _rotate_heads_back(
    grad_q, grad_k, grad_v, own, again, cos, sin, out,
    q_width, k_width, head: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = tl.load(own + row)
    second = tl.load(again + row)
    within = at % head
    is_first_half = within < head // 2
    other = tl.where(is_first_half, at + head // 2, at - head // 2)
    is_q = at < q_width
    is_k = (at >= q_width) & (at < q_width + k_width)
    is_v = (at >= q_width + k_width) & (at < q_width + 2 * k_width)
    k_at = at - q_width
    v_at = k_at - k_width
    k_twice = is_k & (second >= 0)
    v_twice = is_v & (second >= 0)
    values = tl.load(grad_q + row * q_width + at, mask=is_q, other=0.0).to(tl.float32)
    values += tl.load(grad_k + here * k_width + k_at, mask=is_k, other=0.0).to(tl.float32)
    values += tl.load(grad_k + second * k_width + k_at, mask=k_twice, other=0.0).to(tl.float32)
    values += tl.load(grad_v + here * k_width + v_at, mask=is_v, other=0.0).to(tl.float32)
    values += tl.load(grad_v + second * k_width + v_at, mask=v_twice, other=0.0).to(tl.float32)
    others = tl.load(grad_q + row * q_width + other, mask=is_q, other=0.0).to(tl.float32)
    others += tl.load(grad_k + here * k_width + other - q_width, mask=is_k, other=0.0).to(tl.float32)
    others += tl.load(grad_k + second * k_width + other - q_width, mask=k_twice, other=0.0).to(tl.float32)
    turned = is_q | is_k
    other_within = tl.where(is_first_half, within + head // 2, within - head // 2)
    c = tl.load(cos + row * head + within, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + row * head + other_within, mask=turned, other=0.0).to(tl.float32)
    result = values * c + tl.where(is_first_half, others, -others) * s
    tl.store(out + row * (q_width + 2 * k_width) + at, result, mask=is_q | is_k | is_v)


@triton.jit
def _softmax(logits, labels, logps, sums, width: tl.constexpr, writes: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * width
    at = tl.arange(0, BLOCK)
    chosen = tl.load(start + tl.load(labels + row)).to(tl.float32)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        values = tl.load(start + first + at, mask=first + at < width, other=float("-inf")).to(tl.float32)
        above = tl.maximum(largest, values)
        # a lane that has seen nothing yet holds -inf, whose difference from itself is no number
        shift = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(largest - shift) + tl.exp(values - shift)
        largest = above
    highest = tl.max(largest)
    sum_all = tl.sum(total * tl.exp(largest - highest))
    tl.store(logps + row, chosen - highest - tl.log(sum_all))
    if writes:
        tl.store(sums + row, sum_all)
        for first in range(0, width, BLOCK):
            inside = first + at < width
            values = tl.load(start + first + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(start + first + at, tl.exp(values - highest), mask=inside)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out_TD, rstd_T1 = torch.empty_like(x_TD), x_TD.new_empty((len(x_TD), 1), dtype=torch.float32)
    width = x_TD.shape[1]
    _rms_norm[len(x_TD),](x_TD, weight_D, out_TD, rstd_T1, eps, width, False, triton.next_power_of_2(width))
    return out_TD, rstd_T1


def rms_norm_again(x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor) -> Tensor:
    out_TD, width = torch.empty_like(x_TD), x_TD.shape[1]
    _rms_norm[len(x_TD),](x_TD, weight_D, out_TD, rstd_T1, 0.0, width, True, triton.next_power_of_2(width))
    return out_TD


def rms_norm_backward(
    grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor, residual_TD: Tensor
) -> Tensor:
    out_TD, width = torch.empty_like(x_TD), x_TD.shape[1]
    _rms_norm_backward[len(x_TD),](
        grad_TD.contiguous(), x_TD, weight_D, rstd_T1, residual_TD.contiguous(), out_TD, width,
        triton.next_power_of_2(width),
    )  # fmt: skip
    return out_TD


def swiglu(gate_up_TF: Tensor) -> Tensor:
    num_rows, width = len(gate_up_TF), gate_up_TF.shape[1] // 2
    out_TF = gate_up_TF.new_empty((num_rows, width))
    _swiglu[num_rows, triton.cdiv(width, BLOCK)](gate_up_TF, out_TF, width, BLOCK)
    return out_TF


def swiglu_backward(grad_TF: Tensor, gate_up_TF: Tensor) -> Tensor:
    num_rows, width = grad_TF.shape
    out_TF = torch.empty_like(gate_up_TF)
    _swiglu_backward[num_rows, triton.cdiv(width, BLOCK)](grad_TF, gate_up_TF, out_TF, width, BLOCK)
    return out_TF


def rotate_heads(qkv_TE: Tensor, cos_TC: Tensor, sin_TC: Tensor, num_turned: int) -> Tensor:
    out_TE = torch.empty_like(qkv_TE)
    num_rows, width = qkv_TE.shape
    _rotate_heads[num_rows, triton.cdiv(width, BLOCK)](
        qkv_TE, cos_TC, sin_TC, out_TE, width, num_turned, cos_TC.shape[1], BLOCK
    )
    return out_TE


def rotate_heads_back(
    grad_q_THC: Tensor,
    grad_k_SKC: Tensor,
    grad_v_SKC: Tensor,
    own_T: Tensor,
    again_T: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
) -> Tensor:
    num_rows, num_queries, head = grad_q_THC.shape
    q_width, k_width = num_queries * head, grad_k_SKC.shape[1] * head
    out_TE = grad_q_THC.new_empty((num_rows, q_width + 2 * k_width))
    _rotate_heads_back[num_rows, triton.cdiv(q_width + 2 * k_width, BLOCK)](
        grad_q_THC.contiguous(), grad_k_SKC.contiguous(), grad_v_SKC.contiguous(), own_T, again_T, cos_TC,
        sin_TC, out_TE, q_width, k_width, head, BLOCK,
    )  # fmt: skip
    return out_TE


def log_softmax_at(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    return _labels_logps(logits_NV, label_N, writes=False)[0]


def softmax_in_place(logits_NV: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    return _labels_logps(logits_NV, label_N, writes=True)


def _labels_logps(logits_NV: Tensor, label_N: Tensor, *, writes: bool) -> tuple[Tensor, Tensor]:
    num_rows, width = logits_NV.shape
    logps_N, sum_N1 = (
        logits_NV.new_empty(shape, dtype=torch.float32) for shape in ((num_rows,), (num_rows, 1))
    )
    _softmax[num_rows,](logits_NV, label_N, logps_N, sum_N1, width, writes, LOGITS_BLOCK, num_warps=8)
    return logps_N, sum_N1


FAST: dict[str, Callable[..., Any]] = {
    fast.__name__: fast
    for fast in (
        rms_norm,
        rms_norm_again,
        rms_norm_backward,
        swiglu,
        swiglu_backward,
        rotate_heads,
        rotate_heads_back,
        log_softmax_at,
        softmax_in_place,
    )
}
"""By the name of the kernel in kernels.py."""
