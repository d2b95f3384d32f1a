"""Does a template's metadata describe the base? Numbers that shapes do not show."""

from collections.abc import Mapping
from typing import Any

from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.families import WINDOWLESS, check_window
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import TensorLayout
from ray_jobs.export.rope import check_rope_tensors, rope_settings

TOLERANCE = 1e-5
"""Relative: GGUF stores these numbers in float32."""


def check_metadata(template: GgufFile, config: Mapping[str, Any], layout: TensorLayout) -> None:
    """Raises ModelMismatch, naming the key, when a template is for another architecture or other numbers,
    ModelError for a base that the architecture does not compute."""
    kind, architecture = config.get("model_type"), layout.family.architecture
    if template.architecture != architecture:
        raise ModelMismatch(
            f"{template.path}: is of architecture {template.architecture!r}, the base needs {architecture!r}"
        )
    check_window(config, str(template.path))
    expected = {
        "block_count": layout.num_layers,
        "embedding_length": config.get("hidden_size"),
        "attention.head_count": layout.num_heads,
        "attention.head_count_kv": layout.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.sliding_window": None if kind in WINDOWLESS else config.get("sliding_window"),
        "rope.freq_base": rope_settings(config)["rope_theta"],
    }
    for key, value in expected.items():
        found = template.setting(key)
        if found is not None and value is not None and abs(found - value) > TOLERANCE * abs(value):
            name = f"{architecture}.{key}"
            raise ModelMismatch(f"{template.path}: {name} is {found}, the base's is {value}")
    check_rope_tensors(template, config)
