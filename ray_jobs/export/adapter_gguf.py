"""An adapter as a GGUF file of its own, to be loaded beside its base instead of merged into it.

Format: llama.cpp's src/llama-adapter.cpp; `<base tensor>.lora_a` [rank, in] and `.lora_b` [out, rank].
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.errors import ModelError
from ray_jobs.export.adapter import CONFIG, PREFIX, WEIGHTS, base_shapes, check_adapter
from ray_jobs.export.families import full_config
from ray_jobs.export.gguf_tensors import TensorLayout, layout_of

_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


def write_adapter_gguf(hf_dir: Path, adapter_dir: Path, out: Path, *, half: bool = False) -> None:
    """Writes the LoRA adapter in `adapter_dir` of the base in `hf_dir` to `out`, whole, in float32 or `half`.

    llama.cpp multiplies by alpha / rank with one alpha for all; other scalings are folded into the B
    matrices. Raises ModelError for DoRA, biases and whole layers, which only merging can express,
    ModelMismatch for an adapter of another base.
    """
    import gguf
    from safetensors.numpy import load_file

    config = full_config(hf_dir)
    layout = layout_of(config, str(hf_dir))
    check_adapter(adapter_dir, base_shapes(hf_dir), tied=layout.tied)
    settings = json.loads((adapter_dir / CONFIG).read_bytes())
    weights = load_file(adapter_dir / WEIGHTS)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        writer = gguf.GGUFWriter(beside, layout.family.architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
        for name, values in _tensors(weights, settings, layout, adapter_dir).items():
            writer.add_tensor(name, values.astype(np.float16) if half else values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def _tensors(
    weights: Mapping[str, Any], settings: Mapping[str, Any], layout: TensorLayout, adapter_dir: Path
) -> dict[str, Any]:
    tensors = {}
    for key, values in sorted(weights.items()):
        found = _LORA.match(key.removeprefix(PREFIX))
        if found is None:
            raise ModelError(
                f"{adapter_dir}: {key} cannot be kept apart from the base: merge the adapter instead"
            )
        module = found["module"]
        name = layout.gguf_name(f"{module}.weight")
        side = np.asarray(values, dtype=np.float32)
        if found["side"] == "B":
            rank = side.shape[1]
            wanted = _scaling(module, rank, settings)
            side = layout.to_gguf(f"{module}.weight", side) * np.float32(
                wanted * rank / settings["lora_alpha"]
            )
        tensors[f"{name}.lora_{found['side'].lower()}"] = np.ascontiguousarray(side)
    return tensors


def _scaling(module: str, rank: int, settings: Mapping[str, Any]) -> float:
    """PEFT's factor on B A for one module."""
    patterns = settings.get("alpha_pattern") or {}
    matching = [alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = float(matching[0] if matching else settings["lora_alpha"])
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
