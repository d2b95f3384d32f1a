"""Loading the model that is trained: a local folder of safetensors weights, and adapters on it."""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_jobs.errors import ModelError
from ray_jobs.orpo.settings import LoraSettings, TrainingSettings

logger = logging.getLogger(__name__)

PACKED_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text", "smollm3"})
"""Architectures (`model_type` in config.json) whose packed step is tested to equal the unpacked one."""


def load_tokenizer(model_dir: str) -> Any:
    """The tokenizer of a model folder. Raises ModelError when it has none, or no chat template."""
    from transformers import AutoTokenizer

    check_folder(model_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model_dir}: no usable tokenizer: {error}") from error
    if tokenizer.chat_template is None:
        raise ModelError(f"{model_dir}: the tokenizer has no chat template")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model_dir: str, settings: TrainingSettings, device: torch.device) -> nn.Module:
    """The causal language model of a folder on `device`, with adapters if `settings.lora` asks for them.

    Adapters are in fp32 (bf16 loses small AdamW updates), except under DeepSpeed, which keeps fp32
    copies itself. Raises ModelError when the folder holds code, pickles or no weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_folder(model_dir)
    bf16 = uses_bf16(settings, device)
    frozen_base = settings.lora is not None
    held_in_bf16 = bf16 and (frozen_base or settings.deepspeed is not None)
    options: dict[str, Any] = {"dtype": torch.bfloat16 if held_in_bf16 else torch.float32}
    if settings.qlora:
        options |= _four_bit_options(device, torch.bfloat16 if bf16 else torch.float32)
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(model_dir, **here)
        if getattr(config, "attention_dropout", 0.0):
            config.attention_dropout = 0.0  # as all dropout of a model's own is off, see docs/training.md
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, config=config, use_safetensors=True, **here, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model_dir}: cannot be loaded: {error}") from error
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.lora is not None:
        model = _with_adapters(model, settings.lora, settings)
    trained: nn.Module = model if settings.deepspeed is not None or settings.qlora else model.to(device)
    return trained


def check_folder(model_dir: str) -> None:
    """Raises ModelError unless the folder holds a config and safetensors weights and brings no code."""
    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{model_dir}: no config.json")
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            raise ModelError(
                f"{path}: 'auto_map' asks to run code that came with the model; that is not done"
            )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{model_dir}: no *.safetensors weights (pickled weights can run code and are not read)"
        )


def why_not_packed(model_dir: str) -> str | None:
    """Why the packed step cannot compute this model, or None if it can."""
    from transformers import AutoConfig

    check_folder(model_dir)
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    if config.model_type not in PACKED_FAMILIES:
        return f"{config.model_type} models are not among the verified {sorted(PACKED_FAMILIES)}"
    for field, reason in UNPACKABLE.items():
        if getattr(config, field, None):
            return f"{reason} ({field})"
    return None


UNPACKABLE = {
    "final_logit_softcapping": "its logits are capped",
    "attn_logit_softcapping": "its attention scores are capped",
    "use_bidirectional_attention": "its tokens see later ones",
}
"""Fields of config.json that change what the packed step computes by itself."""


def attention_window(config: Any) -> int | None:
    """Positions that a token sees in the layers that do not see all, itself included; None without such."""
    window = getattr(config, "sliding_window", None)
    return int(window) if window and getattr(config, "use_sliding_window", True) else None


def factors_change_at(config: Any) -> int | None:
    """Positions above which a longrope model is computed with other rotary factors; None for other models.

    transformers (5.17) takes them by the longest position of a call, for all that are computed in it.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else None


def causal_lm_of(model: nn.Module) -> Any:
    """The transformers model inside adapters, if there are any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def uses_bf16(settings: TrainingSettings, device: torch.device) -> bool:
    """Whether weights and activations are in bf16 on this device."""
    return multiplies_bf16(device) if settings.precision == "auto" else settings.precision == "bf16"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware does so natively; where it is emulated, it can be hundreds of times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, bool)() for flag in flags)


def training_device() -> torch.device:
    """The GPU of this process, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _with_adapters(model: nn.Module, lora: LoraSettings, settings: TrainingSettings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)  # adapters start from random values
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha_over_rank * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=settings.deepspeed is None)
    except ValueError as error:
        raise ModelError(f"training.lora.target_modules: {error}") from error


def _four_bit_options(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """`dtype`: in which products are computed."""
    from transformers import BitsAndBytesConfig

    if device.type != "cuda":
        raise ModelError("training.qlora: 4-bit weights need a CUDA GPU")
    if find_spec("bitsandbytes") is None:
        raise ModelError("training.qlora: needs pip install 'orpo-on-ray[qlora]'")
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": four_bits, "device_map": {"": device}}
