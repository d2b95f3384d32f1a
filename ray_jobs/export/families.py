"""The model families that can be exported, and how each one's weights lie in a GGUF file.

Layouts follow llama.cpp's converter, https://github.com/ggml-org/llama.cpp/tree/master/conversion.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.errors import ModelError


@dataclass(frozen=True)
class Family:
    """How a family's weights lie in GGUF."""

    architecture: str
    """`general.architecture` in GGUF."""
    interleaves_rope: bool = False
    """Rotary pairs lie side by side in GGUF and half a head apart in HF: rows of q and k are reordered."""
    norm_offset: float = 0.0
    """Added to norm weights: HF's Gemma scales by 1 + weight, llama.cpp by the weight."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", interleaves_rope=True),
    "mistral": Family("llama", interleaves_rope=True),
    "smollm3": Family("smollm3", interleaves_rope=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "phi3": Family("phi3"),
    "gemma3_text": Family("gemma3", norm_offset=1.0),
}
"""By `model_type` in config.json."""
WINDOWLESS = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Of these, those whose architecture in llama.cpp sees everything, whatever a GGUF file says of windows."""


def read_config(hf_dir: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ModelError when it is missing or damaged."""
    return read_object(hf_dir / "config.json")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError, naming the file, when it is missing or damaged."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: must hold an object")
    return config


def full_config(hf_dir: Path) -> dict[str, Any]:
    """The same with the defaults that config.json leaves out. Raises ModelError as `read_config`."""
    from transformers import AutoConfig

    family_of(read_config(hf_dir), str(hf_dir))
    try:
        config = AutoConfig.from_pretrained(hf_dir, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{hf_dir / 'config.json'}: {' '.join(str(error).split())[:300]}") from error
    values: dict[str, Any] = config.to_dict()
    return values


def family_of(config: Mapping[str, Any], origin: str) -> Family:
    """The family of a config.json. Raises ModelError, naming the model type, when it cannot be exported."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{origin}: models of type {model_type!r} are not supported; supported are {known}")
    architectures = config.get("architectures") or []
    if architectures and not any(str(name).endswith("ForCausalLM") for name in architectures):
        raise ModelError(f"{origin}: {architectures[0]} does not generate text")
    return FAMILIES[model_type]


def check_window(config: Mapping[str, Any], origin: str) -> None:
    """Raises ModelError for a config.json, whole or as it was written, with an attention window that
    llama.cpp would not keep to."""
    kind = config.get("model_type")
    # these two have no such field: where there is a window, it is used
    uses = config.get("use_sliding_window", kind in ("llama", "mistral"))
    if kind in WINDOWLESS and config.get("sliding_window") and uses:
        window = f"a sliding window of {config['sliding_window']} tokens"
        raise ModelError(f"{origin}: {kind} with {window} has no form in GGUF: llama.cpp would see all")
