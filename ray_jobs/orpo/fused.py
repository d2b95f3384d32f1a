"""Decoder layers of the Llama kind with few passes over memory.

One layer is four autograd functions instead of some forty: norm with query, key and value; attention
(attention_blocks.py, on GPUs attention_varlen.py); output with residual; and the whole feed-forward block.
Norms and activations are computed again in the backward pass instead of being kept.

Legend: T tokens, D inputs of a linear layer, E outputs of it, F feed-forward channels, R rank of an adapter.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.orpo import attention_varlen, kernels
from ray_jobs.orpo.adapters import JoinedLinears, LayerLinears
from ray_jobs.orpo.attention import attend
from ray_jobs.orpo.attention_blocks import BlockAttention
from ray_jobs.orpo.attention_varlen import RotaryVarlenAttention
from ray_jobs.orpo.linears import TENSORS, Block, Linear, backward, forward
from ray_jobs.orpo.memory import FUSED_FAMILIES
from ray_jobs.orpo.packing import Span


class NormedLinear(torch.autograd.Function):
    """A linear layer on an RMS-normed input, and the input itself.

    What flows around the norm passes through here too, so that its gradient is added in the same pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, norm_D: Tensor, eps: float, blocks: tuple[Block, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        normed_TD, rstd_T1 = kernels.run(kernels.rms_norm, x_TD, norm_D, eps)
        out_TE, inner_TR = forward(normed_TD, Linear.unflatten(tensors, blocks))
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, inner_TR, *tensors)
        ctx.blocks = blocks
        return out_TE, x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor, residual_TD: Tensor) -> tuple[Any, ...]:
        x_TD, norm_D, rstd_T1, inner_TR, *tensors = ctx.saved_tensors
        normed_TD = kernels.run(kernels.rms_norm_again, x_TD, norm_D, rstd_T1)
        linear = Linear.unflatten(tensors, ctx.blocks)
        grad_TD, of_tensors = backward(normed_TD, inner_TR, linear, grad_TE, ctx.needs_input_grad[4:])
        grad_x = kernels.run(kernels.rms_norm_backward, grad_TD, x_TD, norm_D, rstd_T1, residual_TD)
        grad_norm = _norm_weight_gradient(grad_TD, x_TD, rstd_T1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_norm, None, None, *of_tensors


class AddLinear(torch.autograd.Function):
    """residual + linear(x)."""

    @staticmethod
    def forward(
        ctx: Any, residual_TE: Tensor, x_TD: Tensor, blocks: tuple[Block, ...], *tensors: Tensor | None
    ) -> Tensor:
        out_TE, inner_TR = forward(x_TD, Linear.unflatten(tensors, blocks), residual_TE)
        ctx.save_for_backward(x_TD, inner_TR, *tensors)
        ctx.blocks = blocks
        return out_TE

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Any, ...]:
        x_TD, inner_TR, *tensors = ctx.saved_tensors
        linear = Linear.unflatten(tensors, ctx.blocks)
        grad_x, of_tensors = backward(x_TD, inner_TR, linear, grad_TE, ctx.needs_input_grad[3:])
        return grad_TE, grad_x, None, *of_tensors


class FeedForward(torch.autograd.Function):
    """x + down(silu(gate) * up), with gate and up one linear layer on norm(x)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        blocks: tuple[tuple[Block, ...], tuple[Block, ...]],
        *tensors: Tensor | None,
    ) -> Tensor:
        gate_up, down = _two(tensors, blocks)
        normed_TD, rstd_T1 = kernels.run(kernels.rms_norm, x_TD, norm_D, eps)
        gate_up_TF, inner_TR = forward(normed_TD, gate_up)
        hidden_TF = kernels.run(kernels.swiglu, gate_up_TF)
        out_TD, down_inner_TR = forward(hidden_TF, down, x_TD)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, gate_up_TF, inner_TR, down_inner_TR, *tensors)
        ctx.blocks = blocks
        return out_TD

    @staticmethod
    def backward(ctx: Any, grad_out_TD: Tensor) -> tuple[Any, ...]:
        x_TD, norm_D, rstd_T1, gate_up_TF, inner_TR, down_inner_TR, *tensors = ctx.saved_tensors
        gate_up, down = _two(tensors, ctx.blocks)
        needed = ctx.needs_input_grad[4:]
        hidden_TF = kernels.run(kernels.swiglu, gate_up_TF)
        grad_TF, of_down = backward(hidden_TF, down_inner_TR, down, grad_out_TD, needed[TENSORS:])
        del hidden_TF
        grad_gate_up = kernels.run(kernels.swiglu_backward, grad_TF, gate_up_TF)
        normed_TD = kernels.run(kernels.rms_norm_again, x_TD, norm_D, rstd_T1)
        grad_TD, of_gate_up = backward(normed_TD, inner_TR, gate_up, grad_gate_up, needed)
        grad_x = kernels.run(kernels.rms_norm_backward, grad_TD, x_TD, norm_D, rstd_T1, grad_out_TD)
        grad_norm = _norm_weight_gradient(grad_TD, x_TD, rstd_T1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_norm, None, None, *of_gate_up, *of_down


def _two(
    tensors: Sequence[Any], blocks: tuple[tuple[Block, ...], tuple[Block, ...]]
) -> tuple[Linear, Linear]:
    return Linear.unflatten(tensors[:TENSORS], blocks[0]), Linear.unflatten(tensors[TENSORS:], blocks[1])


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
    layers = causal_lm.get_decoder().layers
    causal_lm.joined_linears = JoinedLinears(layers)
    # a class of its own: transformers checkpoints the forward of a layer's class, not that of an instance
    kind = type(layers[0])
    fused = type(f"Fused{kind.__name__}", (kind,), {"forward": _layer_forward})
    for layer in layers:
        layer.__class__ = fused


def _layer_forward(
    self: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    spans: tuple[Span, ...],
    linears: Sequence[LayerLinears],
    **_kwargs: Any,
) -> Tensor:
    of_layer = linears[self.self_attn.layer_idx]
    with torch.autocast(hidden_states.device.type, enabled=False):
        x_TD = hidden_states[0].to(of_layer[0].weight_ED.dtype)
        out_TD = _layer(self, x_TD, position_embeddings, spans, of_layer)
    return out_TD[None]


def _layer(
    layer: Any,
    x_TD: Tensor,
    tables: tuple[Tensor, Tensor],
    spans: tuple[Span, ...],
    linears: LayerLinears,
) -> Tensor:
    qkv, o, gate_up, down = linears
    qkv_TE, x_TD = NormedLinear.apply(x_TD, *_norm(layer.input_layernorm), qkv.blocks, *qkv.flatten())
    attended_TD = _attention(qkv_TE, layer.self_attn, tables, spans)
    x_TD = AddLinear.apply(x_TD, attended_TD, o.blocks, *o.flatten())
    blocks = gate_up.blocks, down.blocks
    inner = *gate_up.flatten(), *down.flatten()
    out_TD: Tensor = FeedForward.apply(x_TD, *_norm(layer.post_attention_layernorm), blocks, *inner)
    return out_TD


def _attention(qkv_TE: Tensor, module: Any, tables: tuple[Tensor, Tensor], spans: tuple[Span, ...]) -> Tensor:
    """What all heads attend to, one after the other, from all heads' queries, keys and values."""
    cos_TC, sin_TC = (table[0] for table in tables)
    width, scale = module.head_dim, module.scaling
    if attention_varlen.has_kernel(qkv_TE, width):
        num_queries = module.q_proj.out_features // width
        attended: Tensor = RotaryVarlenAttention.apply(qkv_TE, cos_TC, sin_TC, num_queries, spans, scale)
        return attended
    sizes = [proj.out_features for proj in (module.q_proj, module.k_proj, module.v_proj)]
    q_THC, k_TKC, v_TKC = (part.unflatten(1, (-1, width)) for part in qkv_TE.split(sizes, dim=1))
    if qkv_TE.device.type == "cpu":
        attended = BlockAttention.apply(q_THC, k_TKC, v_TKC, cos_TC, sin_TC, spans, scale)
    else:
        q_THC, k_TKC = (kernels.run(kernels.rotate, x, cos_TC, sin_TC, 1)[0] for x in (q_THC, k_TKC))
        q_1HTC, k_1KTC, v_1KTC = (x.transpose(0, 1)[None] for x in (q_THC, k_TKC, v_TKC))
        attended = attend(q_1HTC, k_1KTC, v_1KTC, spans, scale)[0].transpose(0, 1)
    return attended.reshape(len(qkv_TE), -1)


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon
