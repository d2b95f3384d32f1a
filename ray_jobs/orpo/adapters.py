"""A model's linear layers made ready for a forward pass: joined where they share an input, adapters rounded.

Hundreds of small adapters cost a GPU's host more than the model's arithmetic when each is rounded, scaled and
differentiated by itself; here it is a handful of launches for all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.orpo.linears import Block, Linear

INPUTS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)
"""Layers of a decoder layer by their input, in the order in which they are used."""
LayerLinears = tuple[Linear, Linear, Linear, Linear]


class JoinedLinears:
    """All linear layers of a stack of decoder layers of the Llama kind."""

    def __init__(self, decoder_layers: Sequence[Any]) -> None:
        self._groups = [
            _Group([getattr(getattr(layer, part), name) for name in names])
            for layer in decoder_layers
            for part, names in INPUTS
        ]

    def prepare(self, dtype: torch.dtype) -> list[LayerLinears]:
        """Per decoder layer its four linears, differentiable in what is trained."""
        groups = [group for group in self._groups if group.adapters]
        downs = [one.down for group in groups for one in group.adapters]
        ups = [one.up for group in groups for one in group.adapters]
        rounded = iter(_Rounded.apply(groups, dtype, *downs, *ups) if groups else ())
        linears = [_linear(group, dtype, rounded) for group in self._groups]
        size = len(INPUTS)
        return [tuple(linears[start : start + size]) for start in range(0, len(linears), size)]  # type: ignore[misc]


def _linear(group: "_Group", dtype: torch.dtype, rounded: Iterator[Tensor]) -> Linear:
    weight, bias = group.weight(dtype), group.bias(dtype)
    if not group.adapters:
        return Linear(weight, bias, None, None)
    return Linear(weight, bias, next(rounded), next(rounded), group.blocks)


@dataclass(frozen=True)
class _Adapter:
    down: Tensor
    up: Tensor
    scale: float
    block: Block


class _Group:
    """Layers on one input."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._layers: list[nn.Linear] = [getattr(module, "base_layer", module) for module in modules]
        self._joined: Tensor | None = None
        self.adapters: list[_Adapter] = []
        row = rank = 0
        for module, layer in zip(modules, self._layers, strict=True):
            rows = slice(row, row := row + layer.out_features)
            if module is layer:
                continue
            (name,) = module.active_adapters
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            ranks = slice(rank, rank := rank + len(down))
            self.adapters.append(_Adapter(down, up, module.scaling[name], (rows, ranks)))
        self.shape = row, rank, self._layers[0].in_features

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(adapter.block for adapter in self.adapters)

    def weight(self, dtype: torch.dtype) -> Tensor:
        weights = [layer.weight for layer in self._layers]
        if len(weights) == 1:
            return weights[0].to(dtype)
        if weights[0].dtype != dtype or any(weight.requires_grad for weight in weights):
            return torch.cat([weight.to(dtype) for weight in weights])
        if self._joined is None or self._joined.data_ptr() != weights[0].data_ptr():
            # the layers' own weights become views of it: nothing is held twice
            self._joined = torch.cat([weight.detach() for weight in weights])
            parts = self._joined.split([len(weight) for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.data = part
        return self._joined

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        if all(layer.bias is None for layer in self._layers):
            return None
        biases = [
            layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
            for layer in self._layers
        ]
        return torch.cat([bias.to(dtype) for bias in biases])


class _Rounded(torch.autograd.Function):
    """All adapters in the activations' type: per group its downs stacked, and its scaled ups as blocks."""

    @staticmethod
    def forward(
        ctx: Any, groups: Sequence[_Group], dtype: torch.dtype, *params: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.groups = groups
        downs, ups = params[: len(params) // 2], params[len(params) // 2 :]
        like = params[0]
        outputs: list[Tensor] = []
        for group in groups:
            outputs.append(torch.empty(group.shape[1:], dtype=dtype, device=like.device))
            outputs.append(torch.zeros(group.shape[:2], dtype=dtype, device=like.device))
        torch._foreach_copy_(_down_blocks(groups, outputs), list(downs))
        torch._foreach_copy_(_up_blocks(groups, outputs), torch._foreach_mul(list(ups), _scales(groups)))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        groups = ctx.groups
        downs = [torch.empty_like(one.down) for group in groups for one in group.adapters]
        ups = [torch.empty_like(one.up) for group in groups for one in group.adapters]
        torch._foreach_copy_(downs, _down_blocks(groups, grads))
        torch._foreach_copy_(ups, _up_blocks(groups, grads))
        torch._foreach_mul_(ups, _scales(groups))
        return None, None, *downs, *ups


def _down_blocks(groups: Sequence[_Group], outputs: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(groups, outputs[::2], strict=True)
    return [down_RD[ranks] for group, down_RD in pairs for _, ranks in group.blocks]


def _up_blocks(groups: Sequence[_Group], outputs: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(groups, outputs[1::2], strict=True)
    return [up_ER[rows, ranks] for group, up_ER in pairs for rows, ranks in group.blocks]


def _scales(groups: Sequence[_Group]) -> list[float]:
    return [adapter.scale for group in groups for adapter in group.adapters]
