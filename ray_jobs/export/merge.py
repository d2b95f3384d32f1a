"""The tuned model in float32: a base with its adapter merged in, or all weights as they were trained."""

from pathlib import Path
from typing import Any

from ray_jobs.errors import ModelError
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.trained import Trained, WholeModel


def load_merged(hf_dir: Path, trained: Trained | None) -> Any:
    """The model of a folder in float32, ready to be asked, with what was trained where there is something.

    Needs 4 bytes of memory per weight. Raises ModelError when weights are missing or damaged.
    """
    if isinstance(trained, WholeModel):
        model = _load(trained.folder, hf_dir)
    elif trained is not None:
        model = _merge(_load(hf_dir, hf_dir), trained.folder)
    else:
        model = _load(hf_dir, hf_dir)
    return model.eval().requires_grad_(False)


def _load(weights: Path, hf_dir: Path) -> Any:
    """The model that the config in `hf_dir` describes, with the weights in a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(hf_dir, local_files_only=True, trust_remote_code=False)
        model, info = AutoModelForCausalLM.from_pretrained(
            weights,
            config=config,
            generation_config=_generation_config(hf_dir, config),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{weights}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{weights}: has no weights for {missing[0]} ({len(missing)} missing)")
    return model


def _generation_config(hf_dir: Path, config: Any) -> Any:
    """The base's, which says what ends an answer; it is not kept with trained weights."""
    from transformers import GenerationConfig

    if (hf_dir / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(hf_dir, local_files_only=True)
    return GenerationConfig.from_model_config(config)


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
