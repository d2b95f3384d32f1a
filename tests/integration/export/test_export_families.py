"""Each family's GGUF computes in llama.cpp what the model computes in transformers."""

from pathlib import Path

import numpy as np
import pytest
import transformers
from export_tiny_models import FAMILIES, LLAMA3_ROPE, make_model

from ray_jobs.errors import ModelError
from ray_jobs.export.base import resolve_base
from ray_jobs.export.export import export_model
from ray_jobs.export.families import full_config
from ray_jobs.export.rope import rope_tensors
from ray_jobs.export.settings import ExportSettings, ModelSettings
from ray_jobs.export.template import template_from_hf

EXACT = ExportSettings(quantization="f16", parity_prompts=8, parity_tokens=64)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(family: str, tmp_path: Path) -> None:
    make_model(family, tmp_path / family)
    base = resolve_base(ModelSettings(base=str(tmp_path / family)), tmp_path / "cache")
    parity = export_model(base, None, tmp_path / "out", EXACT, lambda _: None).parity
    assert parity.prompts == 8
    assert parity.tokens == parity.identical + parity.near_ties
    assert parity.identical >= 0.98 * parity.tokens
    assert parity.max_relative_compute_error < 0.005
    assert parity.max_relative_logit_error < 0.05


def test_rope_factors_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=LLAMA3_ROPE)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = LLAMA3_ROPE["rope_theta"] ** -(np.arange(0, 128, 2) / 128)
    (factors,) = rope_tensors(config.to_dict(), "config.json").values()
    np.testing.assert_allclose(plain / factors, frequencies.numpy(), rtol=1e-5)
    assert factors.min() == 1.0
    assert factors.max() == 32.0


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mistral", {"sliding_window": 64}, "mistral with a sliding window"),
        ("gemma-3", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar"),
        ("gemma-3", {"final_logit_softcapping": 30.0}, "soft-capped"),
        ("smollm3", {"no_rope_layer_interval": 3}, "no_rope_layer_interval"),
    ],
)
def test_what_llama_cpp_has_no_setting_for_is_refused(
    family: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = make_model(family, tmp_path / family)
    config = transformers.AutoConfig.from_pretrained(folder)
    for key, value in changes.items():
        setattr(config, key, value)
    config.save_pretrained(folder)
    assert full_config(folder)["model_type"] == config.model_type
    with pytest.raises(ModelError, match=message):
        template_from_hf(folder, tmp_path / "t.gguf", family)
    assert not (tmp_path / "t.gguf").exists()
