"""The tuned model: a base with its adapter merged in, in float32."""

from pathlib import Path
from typing import Any

from ray_jobs.errors import ModelError
from ray_jobs.export.adapter import Adapter
from ray_jobs.export.errors import ModelMismatch


def load_merged(hf_dir: Path, adapter: Adapter | None) -> Any:
    """The model of a folder in float32, ready to be asked, with the adapter merged where there is one.

    Needs 4 bytes of memory per weight. Raises ModelError when weights are missing or damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            hf_dir,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{hf_dir}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{hf_dir}: has no weights for {missing[0]} ({len(missing)} missing)")
    merged = model if adapter is None else _merge(model, adapter.folder)
    return merged.eval().requires_grad_(False)


def _merge(model: Any, folder: Path) -> Any:
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    weights = {name: values.float() for name, values in load_peft_weights(str(folder), device="cpu").items()}
    try:
        peft_model = get_peft_model(model, config)
        result = set_peft_model_state_dict(peft_model, weights)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelMismatch(f"{folder}: does not fit the base: {reason}") from error
    missing = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or result.unexpected_keys:
        name = (missing or result.unexpected_keys)[0]
        raise ModelMismatch(f"{folder}: {name} is {'missing' if missing else 'not in the base'}")
    return peft_model.merge_and_unload()


def merged_state(model: Any) -> dict[str, Any]:
    """HF name -> float32 tensor, sharing the model's memory."""
    return {name: values.detach() for name, values in model.state_dict().items()}
