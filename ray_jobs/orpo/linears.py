"""Linear layers on one input as one, with their adapters, as few large matrix products.

An adapter adds (x @ down.T) @ up.T to x @ weight.T. Adapters stay in fp32 as parameters and are rounded to
the activations' type when used.

Legend: T tokens, D inputs, E outputs of all the layers on them, R ranks of all their adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

TENSORS = 4
"""Tensors that a Linear flattens to."""
Block = tuple[slice, slice]
"""One layer's outputs among all, and its adapter's ranks among all."""


@dataclass(frozen=True)
class Linear:
    """Layers on one input, in its type; one layer's rows follow the other's.

    `up_ER` carries the adapters' scale and is zero but for the `blocks`.
    """

    weight_ED: Tensor
    bias_E: Tensor | None
    down_RD: Tensor | None
    up_ER: Tensor | None
    blocks: tuple[Block, ...] = ()

    def flatten(self) -> tuple[Tensor | None, ...]:
        return self.weight_ED, self.bias_E, self.down_RD, self.up_ER

    @classmethod
    def unflatten(cls, tensors: Sequence[Any], blocks: tuple[Block, ...]) -> Self:
        weight_ED, bias_E, down_RD, up_ER = tensors
        return cls(weight_ED, bias_E, down_RD, up_ER, blocks)

    @property
    def products(self) -> Sequence[Block]:
        """Into which products with `up_ER` to split: on a GPU one, which reads and writes everything once."""
        return ((slice(None), slice(None)),) if self.weight_ED.is_cuda else self.blocks


def forward(x_TD: Tensor, linear: Linear, residual_TE: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Outputs (plus a residual), and what the adapters' downs made of the input."""
    weight_DE = linear.weight_ED.t()
    out_TE = x_TD @ weight_DE if residual_TE is None else torch.addmm(residual_TE, x_TD, weight_DE)
    if linear.bias_E is not None:
        out_TE += linear.bias_E
    if linear.down_RD is None or linear.up_ER is None:
        return out_TE, None
    inner_TR = x_TD @ linear.down_RD.t()
    for rows, ranks in linear.products:
        out_TE[:, rows].addmm_(inner_TR[:, ranks], linear.up_ER[rows, ranks].t())
    return out_TE, inner_TR


def backward(
    x_TD: Tensor, inner_TR: Tensor | None, linear: Linear, grad_TE: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient in the input, and in the flattened tensors where needed."""
    grad_TD = grad_TE @ linear.weight_ED
    of_tensors: list[Tensor | None] = [
        grad_TE.t() @ x_TD if needed[0] else None,
        grad_TE.sum(0) if needed[1] else None,
        None,
        None,
    ]
    if inner_TR is None or linear.down_RD is None or linear.up_ER is None:
        return grad_TD, of_tensors
    products = linear.products
    inners = [grad_TE[:, rows] @ linear.up_ER[rows, ranks] for rows, ranks in products]
    grad_inner_TR = torch.cat(inners, dim=1) if len(inners) > 1 else inners[0]
    grad_TD.addmm_(grad_inner_TR, linear.down_RD)
    of_tensors[2] = grad_inner_TR.t() @ x_TD
    of_ups = [grad_TE[:, rows].t() @ inner_TR[:, ranks] for rows, ranks in products]
    is_whole = of_ups[0].shape == linear.up_ER.shape
    of_tensors[3] = of_ups[0] if is_whole else _in_blocks(of_ups, products, linear.up_ER)
    return grad_TD, of_tensors


def _in_blocks(parts: Sequence[Tensor], blocks: Sequence[Block], like_ER: Tensor) -> Tensor:
    whole_ER = torch.zeros_like(like_ER)
    for part, (rows, ranks) in zip(parts, blocks, strict=True):
        whole_ER[rows, ranks] = part
    return whole_ER
