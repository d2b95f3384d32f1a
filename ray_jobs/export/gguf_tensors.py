"""Names and layouts of tensors: HF on one side, GGUF on the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_jobs.export.families import Family, family_of

Shape = tuple[int, ...]
Array = TypeVar("Array", bound=NDArray[Any])

TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class TensorLayout:
    """How one model's tensors are named and laid out in GGUF."""

    family: Family
    num_layers: int
    num_heads: int
    num_kv_heads: int
    tied: bool
    """The output layer is the token embedding, and GGUF stores it once."""

    @cached_property
    def _names(self) -> Any:
        import gguf

        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        return gguf.get_tensor_name_map(kinds[self.family.architecture], self.num_layers)

    def gguf_name(self, hf_name: str) -> str | None:
        """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`; None if GGUF has none such."""
        name = self._names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        return None if name is None else str(name)

    def to_gguf(self, hf_name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A tensor as GGUF has it."""
        heads = self._reordered_heads(hf_name)
        if heads:
            return interleave_rope(values, heads)
        return values + np.float32(self.family.norm_offset) if self._offset_norm(hf_name) else values

    def from_gguf(self, hf_name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A GGUF tensor as HF has it: the inverse of `to_gguf`."""
        heads = self._reordered_heads(hf_name)
        if heads:
            return split_rope(values, heads)
        return values - np.float32(self.family.norm_offset) if self._offset_norm(hf_name) else values

    def _reordered_heads(self, hf_name: str) -> int:
        if not self.family.interleaves_rope:
            return 0
        if ".q_proj." in hf_name:
            return self.num_heads
        return self.num_kv_heads if ".k_proj." in hf_name else 0

    def _offset_norm(self, hf_name: str) -> bool:
        return bool(self.family.norm_offset) and hf_name.endswith("norm.weight")


def layout_of(config: Mapping[str, Any], origin: str) -> TensorLayout:
    """The layout of the model that a config.json describes. Raises ModelError if it is not supported."""
    heads = int(config["num_attention_heads"])
    return TensorLayout(
        family=family_of(config, origin),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def interleave_rope(values: Array, num_heads: int) -> Array:
    """Rows of each head from halves (0..h/2-1, h/2..h-1) to pairs (0, h/2, 1, h/2+1, …)."""
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)  # type: ignore[return-value]


def split_rope(values: Array, num_heads: int) -> Array:
    """Rows of each head from pairs to halves: the inverse of `interleave_rope`."""
    pairs = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)  # type: ignore[return-value]
