"""Linear layers with adapters as a few large matrix products, forward and backward.

An adapter adds (x @ down.T) @ up.T to x @ weight.T. Layers on the same input share the products with
their downs. Adapters stay in fp32 as parameters and are rounded to the activations' type when used.

Legend: T tokens, D inputs of a layer, E outputs of it, R rank of an adapter (of all that share an input).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

TENSORS = 4
"""Tensors that a Linear flattens to."""


@dataclass(frozen=True)
class Linear:
    """One layer's tensors, in the type of its input; `up` carries the adapter's scale."""

    weight_ED: Tensor
    bias_E: Tensor | None
    down_RD: Tensor | None
    up_ER: Tensor | None

    def flatten(self) -> tuple[Tensor | None, ...]:
        return self.weight_ED, self.bias_E, self.down_RD, self.up_ER

    @classmethod
    def unflatten(cls, tensors: Sequence[Tensor | None]) -> list[Self]:
        starts = range(0, len(tensors), TENSORS)
        return [cls(*tensors[start : start + TENSORS]) for start in starts]

    @property
    def rank(self) -> int:
        return 0 if self.down_RD is None else len(self.down_RD)


def linear_of(module: nn.Module, dtype: torch.dtype) -> Linear:
    """A linear layer's tensors, with its adapter if PEFT put one on it."""
    layer: Any = module
    base = getattr(layer, "base_layer", layer)
    bias = None if base.bias is None else base.bias.to(dtype)
    if base is layer:
        return Linear(base.weight.to(dtype), bias, None, None)
    (name,) = layer.active_adapters
    up_ER = (layer.lora_B[name].weight * layer.scaling[name]).to(dtype)
    return Linear(base.weight.to(dtype), bias, layer.lora_A[name].weight.to(dtype), up_ER)


def forward(
    x_TD: Tensor, linears: Sequence[Linear], residual_TE: Tensor | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """Outputs of the layers on one input (plus a residual), and what the adapters' downs made of it."""
    downs = [linear.down_RD for linear in linears if linear.down_RD is not None]
    inner_TR = x_TD @ torch.cat(downs).t() if downs else None
    outs = []
    start = 0
    for linear in linears:
        weight_DE = linear.weight_ED.t()
        out_TE = x_TD @ weight_DE if residual_TE is None else torch.addmm(residual_TE, x_TD, weight_DE)
        if linear.bias_E is not None:
            out_TE += linear.bias_E
        if inner_TR is not None and linear.up_ER is not None:
            out_TE.addmm_(inner_TR[:, start : start + linear.rank], linear.up_ER.t())
        start += linear.rank
        outs.append(out_TE)
    return outs, inner_TR


def backward(
    x_TD: Tensor,
    inner_TR: Tensor | None,
    linears: Sequence[Linear],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient in the common input, and in the layers' flattened tensors where needed."""
    grad_inner = [
        grad @ linear.up_ER for linear, grad in zip(linears, grads, strict=True) if linear.up_ER is not None
    ]
    grad_inner_TR = torch.cat(grad_inner, dim=1) if grad_inner else None
    grad_TD = grads[0] @ linears[0].weight_ED
    for linear, grad_TE in zip(linears[1:], grads[1:], strict=True):
        grad_TD.addmm_(grad_TE, linear.weight_ED)
    grad_down_RD = None
    if grad_inner_TR is not None:
        downs = [linear.down_RD for linear in linears if linear.down_RD is not None]
        grad_TD.addmm_(grad_inner_TR, torch.cat(downs))
        grad_down_RD = grad_inner_TR.t() @ x_TD
    of_tensors: list[Tensor | None] = []
    start = 0
    for index, (linear, grad_TE) in enumerate(zip(linears, grads, strict=True)):
        rows = slice(start, start + linear.rank)
        needs_weight, needs_bias = needed[TENSORS * index], needed[TENSORS * index + 1]
        of_tensors += [
            grad_TE.t() @ x_TD if needs_weight else None,
            grad_TE.sum(0) if needs_bias else None,
            None if grad_down_RD is None or not linear.rank else grad_down_RD[rows],
            None if inner_TR is None or not linear.rank else grad_TE.t() @ inner_TR[:, rows],
        ]
        start += linear.rank
    return grad_TD, of_tensors
