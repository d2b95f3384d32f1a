"""The bundled model: a real base, its GGUF as the template, a real export."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_jobs.export.base import BaseModel
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.export import export_model
from ray_jobs.export.families import full_config
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import TensorLayout, layout_of
from ray_jobs.export.go_template import Chat
from ray_jobs.export.manifest import Manifest
from ray_jobs.export.merge import load_merged, merged_state
from ray_jobs.export.modelfile import CHECKED, chat_texts, write_modelfile
from ray_jobs.export.settings import ExportSettings
from ray_jobs.export.untouched import check_untouched
from ray_jobs.runs import file_sha256
from serving.engine.tokenizer import Tokenizer

SETTINGS = ExportSettings(parity_prompts=2, parity_tokens=16)


@pytest.fixture(scope="module")
def layout(bundled: BaseModel) -> TensorLayout:
    return layout_of(full_config(bundled.hf_dir), str(bundled.hf_dir))


def test_the_base_is_exported_with_identical_tokens(bundled: BaseModel, tmp_path: Path) -> None:
    manifest = export_model(bundled, None, tmp_path, SETTINGS, lambda _: None)
    assert manifest.parity.near_ties == 0
    assert manifest.parity.identical == manifest.parity.tokens > 16
    assert manifest.parity.max_relative_logit_error < 0.05
    assert manifest.untouched.tensors == 272
    assert manifest.untouched.max_relative_error < 5e-4
    assert manifest.sha256 == file_sha256(tmp_path / "model.gguf")
    assert manifest.base.sha256 == manifest.recipe.template_sha256 == file_sha256(bundled.gguf)
    assert Manifest.read(tmp_path / "manifest.json") == manifest
    before, after = GgufFile(bundled.gguf), GgufFile(tmp_path / "model.gguf")
    ours = {"general.file_type", "general.quantization_version"}
    for key in before.entries.keys() - ours:
        assert after.entries[key].raw == before.entries[key].raw


def test_a_random_adapter_is_exported_with_parity(bundled: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(bundled.hf_dir, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    model.save_pretrained(tmp_path / "adapter")
    manifest = export_model(bundled, tmp_path / "adapter", tmp_path / "out", SETTINGS, lambda _: None)
    assert manifest.parity.identical + manifest.parity.near_ties == manifest.parity.tokens
    assert manifest.parity.identical >= manifest.parity.tokens - 1
    assert manifest.parity.max_relative_compute_error < 0.05
    assert manifest.untouched.tensors == 62  # norms and the embedding


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_weights_of_another_training_are_caught(bundled: BaseModel, layout: TensorLayout, name: str) -> None:
    state = merged_state(load_merged(bundled.hf_dir, None))
    state[name] = state[name] * (1 + 0.05 * torch.randn(state[name].shape, generator=torch.manual_seed(0)))
    with pytest.raises(ModelMismatch, match="is not the base's GGUF"):
        check_untouched(GgufFile(bundled.gguf), state, layout, frozenset())


def test_rows_in_the_wrong_order_are_caught_by_the_template(
    bundled: BaseModel, layout: TensorLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = merged_state(load_merged(bundled.hf_dir, None))
    monkeypatch.setattr("ray_jobs.export.gguf_tensors.interleave_rope", lambda values, _: np.asarray(values))
    with pytest.raises(ModelMismatch, match=r"blk\.0\.attn_[kq]\.weight differs by 1"):
        check_untouched(GgufFile(bundled.gguf), state, layout, frozenset())


def test_the_modelfile_says_the_bundled_template_in_ollamas_language(
    bundled: BaseModel, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").symlink_to(bundled.gguf)
    text = write_modelfile(bundled.hf_dir, tmp_path, 1024).read_text()
    assert text.startswith('# ollama create NAME -f Modelfile\nFROM ./model.gguf\nTEMPLATE """{{- if ne')
    assert "<|im_start|>system\nYou are" in text
    assert "named SmolLM" in text
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in text
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 1024\n')


@pytest.mark.parametrize("chat", CHECKED, ids=range(len(CHECKED)))
def test_ollama_reads_the_tokens_of_the_models_own_template(bundled: BaseModel, chat: Chat) -> None:
    """It has llama.cpp put the beginning token before the text where the file asks for it, as here."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.hf_dir)
    texts = chat_texts(tokenizer, bundled.gguf)
    assert texts is not None
    own = tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=False)
    with Tokenizer.open(bundled.gguf) as vocabulary:
        assert vocabulary.tokenize(texts.render(chat), special=True, add_bos=True) == own
