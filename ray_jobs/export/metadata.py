"""Does a template's metadata describe the base? Numbers that shapes do not show."""

from collections.abc import Mapping
from typing import Any

from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import TensorLayout

TOLERANCE = 1e-5
"""Relative: GGUF stores these numbers in float32."""


def check_metadata(template: GgufFile, config: Mapping[str, Any], layout: TensorLayout) -> None:
    """Raises ModelMismatch, naming the key, when a template is for another architecture or other numbers."""
    if template.architecture != layout.family.architecture:
        raise ModelMismatch(
            f"{template.path}: is of architecture {template.architecture!r}, the base needs "
            f"{layout.family.architecture!r}"
        )
    expected = {
        "block_count": layout.num_layers,
        "embedding_length": config.get("hidden_size"),
        "attention.head_count": layout.num_heads,
        "attention.head_count_kv": layout.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "rope.freq_base": rope_theta(config),
    }
    for key, value in expected.items():
        found = template.setting(key)
        if found is not None and value is not None and abs(found - value) > TOLERANCE * abs(value):
            raise ModelMismatch(f"{template.path}: {template.architecture}.{key} is {found}, the base's is {value}")


def rope_theta(config: Mapping[str, Any]) -> float | None:
    """Base of the rotary frequencies, wherever this version of config.json has it."""
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    theta = rope.get("rope_theta", config.get("rope_theta"))
    return None if theta is None else float(theta)
