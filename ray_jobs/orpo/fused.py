"""Decoder layers of the Llama kind with few passes over memory.

One layer is four autograd functions instead of some forty: norm with query, key and value; attention
(attention_blocks.py); output with residual; and the whole feed-forward block. Norms and activations are
computed again in the backward pass instead of being kept.

Legend: T tokens, D inputs of a linear layer, E outputs of it, F feed-forward channels, R rank of an adapter.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.orpo import kernels
from ray_jobs.orpo.attention import attend
from ray_jobs.orpo.attention_blocks import BlockAttention
from ray_jobs.orpo.linears import TENSORS, Linear, backward, forward, linear_of
from ray_jobs.orpo.memory import FUSED_FAMILIES
from ray_jobs.orpo.packing import Span


class NormedLinears(torch.autograd.Function):
    """Several linear layers on one RMS-normed input, and the input itself.

    What flows around the norm passes through here too, so that its gradient is added in the same pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, norm_D: Tensor, eps: float, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        normed_TD, rstd_T1 = kernels.run(kernels.rms_norm, x_TD, norm_D, eps)
        outs, inner_TR = forward(normed_TD, Linear.unflatten(tensors))
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, inner_TR, *tensors)
        return *outs, x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx: Any, *grads_and_residual: Tensor) -> tuple[Any, ...]:
        *grads, residual_TD = grads_and_residual
        x_TD, norm_D, rstd_T1, inner_TR, *tensors = ctx.saved_tensors
        normed_TD = kernels.run(kernels.rms_norm_again, x_TD, norm_D, rstd_T1)
        grad_TD, of_tensors = backward(
            normed_TD, inner_TR, Linear.unflatten(tensors), grads, ctx.needs_input_grad[3:]
        )
        grad_x = kernels.run(kernels.rms_norm_backward, grad_TD, x_TD, norm_D, rstd_T1, residual_TD)
        grad_norm = _norm_weight_gradient(grad_TD, x_TD, rstd_T1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_norm, None, *of_tensors


class AddLinear(torch.autograd.Function):
    """residual + linear(x)."""

    @staticmethod
    def forward(ctx: Any, residual_TE: Tensor, x_TD: Tensor, *tensors: Tensor | None) -> Tensor:
        (out_TE,), inner_TR = forward(x_TD, Linear.unflatten(tensors), residual_TE)
        ctx.save_for_backward(x_TD, inner_TR, *tensors)
        return out_TE

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Any, ...]:
        x_TD, inner_TR, *tensors = ctx.saved_tensors
        grad_x, of_tensors = backward(
            x_TD, inner_TR, Linear.unflatten(tensors), [grad_TE], ctx.needs_input_grad[2:]
        )
        return grad_TE, grad_x, *of_tensors


class FeedForward(torch.autograd.Function):
    """x + down(silu(gate(norm(x))) * up(norm(x)))."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, norm_D: Tensor, eps: float, *tensors: Tensor | None) -> Tensor:
        gate, up, down = Linear.unflatten(tensors)
        normed_TD, rstd_T1 = kernels.run(kernels.rms_norm, x_TD, norm_D, eps)
        (gate_TF, up_TF), inner_TR = forward(normed_TD, [gate, up])
        hidden_TF = kernels.run(kernels.swiglu, gate_TF, up_TF)
        (out_TD,), down_inner_TR = forward(hidden_TF, [down], x_TD)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, gate_TF, up_TF, inner_TR, down_inner_TR, *tensors)
        return out_TD

    @staticmethod
    def backward(ctx: Any, grad_out_TD: Tensor) -> tuple[Any, ...]:
        x_TD, norm_D, rstd_T1, gate_TF, up_TF, inner_TR, down_inner_TR, *tensors = ctx.saved_tensors
        gate, up, down = Linear.unflatten(tensors)
        needed = ctx.needs_input_grad[3:]
        hidden_TF = kernels.run(kernels.swiglu, gate_TF, up_TF)
        grad_TF, of_down = backward(hidden_TF, down_inner_TR, [down], [grad_out_TD], needed[2 * TENSORS :])
        del hidden_TF
        grad_gate, grad_up = kernels.run(kernels.swiglu_backward, grad_TF, gate_TF, up_TF)
        normed_TD = kernels.run(kernels.rms_norm_again, x_TD, norm_D, rstd_T1)
        grad_TD, of_inputs = backward(normed_TD, inner_TR, [gate, up], [grad_gate, grad_up], needed)
        grad_x = kernels.run(kernels.rms_norm_backward, grad_TD, x_TD, norm_D, rstd_T1, grad_out_TD)
        grad_norm = _norm_weight_gradient(grad_TD, x_TD, rstd_T1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_norm, None, *of_inputs, *of_down


def _norm_weight_gradient(grad_TD: Tensor, x_TD: Tensor, rstd_T1: Tensor) -> Tensor:
    return (grad_TD.float() * x_TD.float() * rstd_T1).sum(0)


def why_not_fused(causal_lm: Any) -> str | None:
    """Why a model's layers keep the forward they have, or None if they can be fused."""
    if causal_lm.config.model_type not in FUSED_FAMILIES:
        return f"layers of {causal_lm.config.model_type} are not of the Llama kind"
    if causal_lm.config.hidden_act != "silu":
        return f"activation {causal_lm.config.hidden_act}"
    if getattr(causal_lm, "is_quantized", False):
        return "quantised weights"
    for module in causal_lm.modules():
        if hasattr(module, "lora_A") and not _is_plain_lora(module):
            return "adapters with dropout, DoRA or several sets"
    return None


def _is_plain_lora(module: Any) -> bool:
    dropout = any(not isinstance(layer, nn.Identity) for layer in module.lora_dropout.values())
    return len(module.lora_A) == 1 and not module.lora_variant and not dropout


def fuse_layers(causal_lm: Any) -> None:
    """Replace the forward of every decoder layer; `why_not_fused` must have said None."""
    for layer in causal_lm.get_decoder().layers:
        layer.forward = MethodType(_layer_forward, layer)


def _layer_forward(
    self: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    spans: tuple[Span, ...],
    **_kwargs: Any,
) -> Tensor:
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
    with torch.autocast(device, enabled=False):
        out_TD = _layer(self, hidden_states[0].to(dtype), position_embeddings, spans)
    return out_TD[None]


def _layer(layer: Any, x_TD: Tensor, tables: tuple[Tensor, Tensor], spans: tuple[Span, ...]) -> Tensor:
    attention, feed_forward = layer.self_attn, layer.mlp
    projections = _flat(x_TD, attention.q_proj, attention.k_proj, attention.v_proj)
    q_TE, k_TE, v_TE, x_TD = NormedLinears.apply(x_TD, *_norm(layer.input_layernorm), *projections)
    q_THC, k_TKC, v_TKC = (y_TE.view(len(y_TE), -1, attention.head_dim) for y_TE in (q_TE, k_TE, v_TE))
    attended_THC = _attention(q_THC, k_TKC, v_TKC, tables, spans, attention.scaling)
    x_TD = AddLinear.apply(x_TD, attended_THC.reshape(len(x_TD), -1), *_flat(x_TD, attention.o_proj))
    inner = _flat(x_TD, feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj)
    out_TD: Tensor = FeedForward.apply(x_TD, *_norm(layer.post_attention_layernorm), *inner)
    return out_TD


def _attention(
    q_THC: Tensor,
    k_TKC: Tensor,
    v_TKC: Tensor,
    tables: tuple[Tensor, Tensor],
    spans: tuple[Span, ...],
    scale: float,
) -> Tensor:
    cos_TC, sin_TC = (table[0] for table in tables)
    if q_THC.device.type == "cpu":
        attended: Tensor = BlockAttention.apply(q_THC, k_TKC, v_TKC, cos_TC, sin_TC, spans, scale)
        return attended
    # GPUs have fast fused kernels, and pay for every launch of a small one
    q_HTC, k_KTC = (
        kernels.run(kernels.rotate, x, cos_TC, sin_TC, 1)[0].transpose(0, 1) for x in (q_THC, k_TKC)
    )
    return attend(q_HTC[None], k_KTC[None], v_TKC.transpose(0, 1)[None], spans, scale)[0].transpose(0, 1)


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _flat(x: Tensor, *modules: nn.Module) -> list[Tensor | None]:
    return [tensor for module in modules for tensor in linear_of(module, x.dtype).flatten()]
