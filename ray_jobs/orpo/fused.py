"""Decoder layers of the Llama kind with few passes over memory.

One layer is three autograd functions instead of some forty: norm with query, key and value; attention
(attention_blocks.py); output with residual; and the whole feed-forward block. Norms, activations and
adapter inputs are computed again in the backward pass instead of being kept. Adapters stay in fp32
and are rounded to the activations' type when used.

Legend: T tokens, D inputs of a linear layer, E outputs of it, R rank of an adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.orpo import kernels
from ray_jobs.orpo.attention_blocks import BlockAttention
from ray_jobs.orpo.packing import Span


@dataclass(frozen=True)
class Linear:
    """A linear layer as tensors: x @ weight.T + bias + scale * (x @ down.T) @ up.T."""

    weight_ED: Tensor
    bias_E: Tensor | None
    down_RD: Tensor | None
    up_ER: Tensor | None
    scale: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.weight_ED, self.bias_E, self.down_RD, self.up_ER


def linear_of(module: nn.Module) -> Linear:
    """The tensors of a linear layer, with its adapter if PEFT put one on it."""
    if not hasattr(module, "base_layer"):
        return Linear(module.weight, module.bias, None, None, 1.0)  # type: ignore[arg-type]
    layer: Any = module
    (name,) = layer.active_adapters
    base = layer.base_layer
    return Linear(base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


class NormedLinears(torch.autograd.Function):
    """Several linear layers on one RMS-normed input."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, norm_D: Tensor, eps: float, scales: Sequence[float], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        normed_TD, rstd_T1 = kernels.run(kernels.rms_norm, x_TD, norm_D, eps)
        linears = _linears(tensors, scales)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, *tensors)
        ctx.scales = scales
        return tuple(apply_linear(normed_TD, linear) for linear in linears)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_TD, norm_D, rstd_T1, *tensors = ctx.saved_tensors
        normed_TD = kernels.run(kernels.rms_norm_again, x_TD, norm_D, rstd_T1)
        grad_TD, grads_of_tensors = linears_backward(
            normed_TD, _linears(tensors, ctx.scales), grads, ctx.needs_input_grad[4:]
        )
        grad_x = kernels.run(kernels.rms_norm_backward, grad_TD, x_TD, norm_D, rstd_T1, torch.zeros_like(x_TD))
        grad_norm = _norm_weight_gradient(grad_TD, x_TD, rstd_T1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_norm, None, None, *grads_of_tensors


class AddLinear(torch.autograd.Function):
    """residual + linear(x)."""

    @staticmethod
    def forward(ctx: Any, residual_TE: Tensor, x_TD: Tensor, scale: float, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TD, *tensors)
        ctx.scale = scale
        return apply_linear(x_TD, *_linears(tensors, [scale]), residual_TE)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Any, ...]:
        x_TD, *tensors = ctx.saved_tensors
        grad_x, grads = linears_backward(x_TD, _linears(tensors, [ctx.scale]), [grad_TE], ctx.needs_input_grad[3:])
        return grad_TE, grad_x, None, *grads


class FeedForward(torch.autograd.Function):
    """x + down(silu(gate(norm(x))) * up(norm(x)))."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, norm_D: Tensor, eps: float, scales: Sequence[float], *tensors: Tensor | None
    ) -> Tensor:
        normed_TD, rstd_T1 = kernels.run(kernels.rms_norm, x_TD, norm_D, eps)
        gate, up, down = _linears(tensors, scales)
        gate_TF, up_TF = apply_linear(normed_TD, gate), apply_linear(normed_TD, up)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, gate_TF, up_TF, *tensors)
        ctx.scales = scales
        return apply_linear(kernels.run(kernels.swiglu, gate_TF, up_TF), down, x_TD)

    @staticmethod
    def backward(ctx: Any, grad_out_TD: Tensor) -> tuple[Any, ...]:
        x_TD, norm_D, rstd_T1, gate_TF, up_TF, *tensors = ctx.saved_tensors
        *inner, down = _linears(tensors, ctx.scales)
        needed = ctx.needs_input_grad[4:]
        grad_TF = input_gradient([grad_out_TD], [down])
        grad_gate, grad_up, hidden_TF = kernels.run(kernels.swiglu_backward, grad_TF, gate_TF, up_TF)
        down_grads = weight_gradients(hidden_TF, down, grad_out_TD, needed[8:])
        normed_TD = kernels.run(kernels.rms_norm_again, x_TD, norm_D, rstd_T1)
        grad_TD, inner_grads = linears_backward(normed_TD, inner, [grad_gate, grad_up], needed[:8])
        grad_x = kernels.run(kernels.rms_norm_backward, grad_TD, x_TD, norm_D, rstd_T1, grad_out_TD)
        grad_norm = _norm_weight_gradient(grad_TD, x_TD, rstd_T1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_norm, None, None, *inner_grads, *down_grads


def apply_linear(x_TD: Tensor, linear: Linear, residual_TE: Tensor | None = None) -> Tensor:
    """The linear layer in the type of x, plus a residual."""
    dtype = x_TD.dtype
    weight_DE = linear.weight_ED.to(dtype).t()
    out_TE = x_TD @ weight_DE if residual_TE is None else torch.addmm(residual_TE, x_TD, weight_DE)
    if linear.bias_E is not None:
        out_TE += linear.bias_E.to(dtype)
    if linear.down_RD is not None and linear.up_ER is not None:
        inner_TR = x_TD @ linear.down_RD.to(dtype).t()
        out_TE.addmm_(inner_TR, (linear.up_ER * linear.scale).to(dtype).t())
    return out_TE


def linears_backward(
    x_TD: Tensor, linears: Sequence[Linear], grads: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient in the common input of linear layers, and in their tensors where needed."""
    of_tensors: list[Tensor | None] = []
    for index, (linear, grad_TE) in enumerate(zip(linears, grads, strict=True)):
        of_tensors += weight_gradients(x_TD, linear, grad_TE, needed[4 * index : 4 * index + 4])
    return input_gradient(grads, linears), of_tensors


def input_gradient(grads: Sequence[Tensor], linears: Sequence[Linear]) -> Tensor:
    total_TD: Tensor | None = None
    for linear, grad_TE in zip(linears, grads, strict=True):
        dtype = grad_TE.dtype
        weight_ED = linear.weight_ED.to(dtype)
        total_TD = grad_TE @ weight_ED if total_TD is None else total_TD.addmm_(grad_TE, weight_ED)
        if linear.down_RD is not None and linear.up_ER is not None:
            inner_TR = grad_TE @ (linear.up_ER * linear.scale).to(dtype)
            total_TD.addmm_(inner_TR, linear.down_RD.to(dtype))
    assert total_TD is not None
    return total_TD


def weight_gradients(x_TD: Tensor, linear: Linear, grad_TE: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients in weight, bias, down and up, each in the tensor's own type."""
    dtype = x_TD.dtype
    grads: list[Tensor | None] = [None, None, None, None]
    if needed[0]:
        grads[0] = (grad_TE.t() @ x_TD).to(linear.weight_ED.dtype)
    if needed[1] and linear.bias_E is not None:
        grads[1] = grad_TE.sum(0, dtype=torch.float32).to(linear.bias_E.dtype)
    if needed[2] and linear.down_RD is not None and linear.up_ER is not None:
        inner_TR = grad_TE @ (linear.up_ER * linear.scale).to(dtype)
        grads[2] = (inner_TR.t() @ x_TD).to(linear.down_RD.dtype)
    if needed[3] and linear.down_RD is not None and linear.up_ER is not None:
        inner_TR = x_TD @ linear.down_RD.to(dtype).t()
        grads[3] = (grad_TE.t() @ inner_TR).to(linear.up_ER.dtype) * linear.scale
    return grads


def _linears(tensors: Sequence[Tensor | None], scales: Sequence[float]) -> list[Linear]:
    return [Linear(*tensors[4 * i : 4 * i + 4], scale) for i, scale in enumerate(scales)]  # type: ignore[arg-type]


def _norm_weight_gradient(grad_TD: Tensor, x_TD: Tensor, rstd_T1: Tensor) -> Tensor:
    return (grad_TD.float() * x_TD.float() * rstd_T1).sum(0)


def fuse_layers(causal_lm: Any) -> None:
    """Replace the forward of every decoder layer of a Llama-like model."""
    for layer in causal_lm.get_decoder().layers:
        layer.forward = MethodType(_layer_forward, layer)


def _layer_forward(
    self: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    spans: Sequence[Span],
    **_kwargs: Any,
) -> Tensor:
    attention, feed_forward = self.self_attn, self.mlp
    x_TD = hidden_states[0]
    cos_TC, sin_TC = (table[0] for table in position_embeddings)
    projections = [linear_of(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    q_TE, k_TE, v_TE = NormedLinears.apply(x_TD, *_norm(self.input_layernorm), *_flat(projections))
    heads = lambda y_TE: y_TE.view(len(y_TE), -1, attention.head_dim)  # noqa: E731
    attended = BlockAttention.apply(heads(q_TE), heads(k_TE), heads(v_TE), cos_TC, sin_TC, spans, attention.scaling)
    output = linear_of(attention.o_proj)
    x_TD = AddLinear.apply(x_TD, attended.reshape(len(x_TD), -1), output.scale, *output.tensors)
    inner = [linear_of(module) for module in (feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj)]
    out_TD: Tensor = FeedForward.apply(x_TD, *_norm(self.post_attention_layernorm), *_flat(inner))
    return out_TD[None]


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _flat(linears: Sequence[Linear]) -> tuple[Any, ...]:
    return tuple(linear.scale for linear in linears), *(tensor for linear in linears for tensor in linear.tensors)
