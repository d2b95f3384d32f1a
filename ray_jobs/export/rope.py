"""Rotary position settings of a config.json, and what of them GGUF stores as tensors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.errors import ModelError
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.gguf_file import GgufFile

TOLERANCE = 1e-4


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_type`, `rope_theta` and the scaling's own keys, wherever this config.json has them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(rope.get("full_attention", rope))
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta"))
    for key in ("original_max_position_embeddings", "partial_rotary_factor"):
        if config.get(key) is not None:
            rope.setdefault(key, config[key])
    return rope


def rotary_size(config: Mapping[str, Any]) -> int:
    """Dimensions of a head that are rotated."""
    share = rope_settings(config).get("partial_rotary_factor", 1.0)
    return int(head_size(config) * share)


def head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rope_tensors(config: Mapping[str, Any], origin: str) -> dict[str, NDArray[np.float32]]:
    """GGUF tensors of factors that each rotary frequency is divided by; none without scaling.

    Raises ModelError, naming the kind, for a scaling that is not supported.
    """
    rope = rope_settings(config)
    kind = rope["rope_type"]
    if kind in ("default", "linear"):
        return {}
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, rotary_size(config))}
    if kind == "longrope":
        return {
            "rope_factors_long.weight": np.array(rope["long_factor"], dtype=np.float32),
            "rope_factors_short.weight": np.array(rope["short_factor"], dtype=np.float32),
        }
    raise ModelError(f"{origin}: rope scaling {kind!r} is not supported")


def check_rope_tensors(template: GgufFile, config: Mapping[str, Any]) -> None:
    """Raises ModelMismatch, naming the tensor, if a template scales frequencies otherwise than the base."""
    expected = rope_tensors(config, str(template.path))
    found = {name for name in template.tensors if name.startswith("rope_f")}
    for name in sorted(found ^ expected.keys()):
        raise ModelMismatch(
            f"{template.path}: {name} is {'not the base' if name in found else 'missing: the base'}'s"
        )
    for name, values in expected.items():
        other = template.array(name)
        if other.shape != values.shape or not np.allclose(other, values, rtol=TOLERANCE):
            raise ModelMismatch(f"{template.path}: {name} differs from what the base's config gives")


def _llama3_factors(rope: Mapping[str, Any], size: int) -> NDArray[np.float32]:
    """Llama 3.1's scaling: long wavelengths by `factor`, short ones not, a ramp between."""
    old_context = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    wavelengths = 2 * math.pi * np.power(float(rope["rope_theta"]), exponents)
    ramp = np.clip((old_context / wavelengths - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float32] = (1 / ((1 - ramp) / factor + ramp)).astype(np.float32)
    return factors


def longrope_attention_factor(config: Mapping[str, Any]) -> float:
    """What Phi-3's long rope multiplies attention by, https://arxiv.org/abs/2402.13753."""
    rope = rope_settings(config)
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    scale = config["max_position_embeddings"] / rope["original_max_position_embeddings"]
    if scale <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(rope["original_max_position_embeddings"]))
