"""Each family's GGUF computes in llama.cpp what the model computes in transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from export_tiny_models import FAMILIES, LLAMA3_ROPE, make_model

from ray_jobs.errors import ModelError
from ray_jobs.export.families import full_config
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.modelfile import write_modelfile
from ray_jobs.export.rope import rope_tensors
from ray_jobs.export.template import template_from_hf
from tests.integration.export.family_table import HEADINGS, family_row, written_table

ALIKE = {"smollm3": "llama-3.2", "qwen3": "qwen2.5"}
"""Families that differ least from another."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in FAMILIES],
)
def test_a_family_trains_exports_with_parity_and_serves(family: str, tmp_path: Path) -> None:
    row = family_row(family, tmp_path)
    parity = row.parity
    assert row.trains == "packed"
    assert row.served.tokens >= 64
    assert row.served.identical >= 0.97 * row.served.tokens
    assert row.served.largest_gap < 0.1  # where it chose otherwise, rounding decided
    modelfile = write_modelfile(tmp_path / family, tmp_path / "out", 256).read_text()
    assert "<|turn|>assistant\n{{ .Content }}<|end|>\n{{ end }}" in modelfile
    assert modelfile.endswith('PARAMETER stop "<|end|>"\nPARAMETER num_ctx 256\n')
    assert (row.exact.identical, row.exact.near_ties) == (row.exact.tokens, 0)
    # llama.cpp looks Gemma's activation up in a table of f16
    limit = 0.005 if family == "gemma-3" else 1e-4
    assert row.exact.max_relative_compute_error < limit
    assert parity.prompts == 8
    assert parity.tokens == parity.identical + parity.near_ties
    assert parity.identical >= 0.98 * parity.tokens
    assert (
        parity.max_relative_compute_error < 0.05
    )  # by kernels that round activations; 1 with a wrong layout
    assert parity.max_relative_logit_error < 0.1
    # the published line says the same; rounding may choose another token on another processor
    published = dict(zip(HEADINGS, published_cells(family), strict=True))
    found = dict(zip(HEADINGS, row.cells(), strict=True))
    for name in ("model type", "trains", "exports", "template"):
        assert published[name] == found[name]
    assert float(published["error in F32"]) < limit
    assert published["greedy tokens equal in F32"] == found["greedy tokens equal in F32"]
    assert float(published["in F16"]) < 0.08
    assert int(published["equal in F16"].split()[0]) >= 0.98 * parity.tokens
    identical, tokens = (int(number) for number in published["served alike"].split(" of "))
    assert identical >= 0.97 * tokens  # how many there are is another processor's affair, too


def published_cells(family: str) -> tuple[str, ...]:
    """The family's line in docs/models.md."""
    lines = [line.strip("| ").split(" | ") for line in written_table().splitlines()]
    (cells,) = (line for line in lines if line[0] == family)
    return tuple(cells)


def test_the_published_table_has_every_family_once() -> None:
    lines = written_table().splitlines()
    assert lines[0].strip("| ").split(" | ") == list(HEADINGS)
    assert [line.strip("| ").split(" | ")[0] for line in lines[2:]] == list(FAMILIES)


def test_rope_factors_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=LLAMA3_ROPE)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = LLAMA3_ROPE["rope_theta"] ** -(np.arange(0, 128, 2) / 128)
    (factors,) = rope_tensors(config.to_dict(), "config.json").values()
    np.testing.assert_allclose(plain / factors, frequencies.numpy(), rtol=1e-5)
    assert factors.min() == 1.0
    assert factors.max() == 32.0


def test_a_tokenizer_with_more_than_the_model_uses_gives_a_whole_template(tmp_path: Path) -> None:
    """As Gemma 3's text-only sizes: a token for images beyond the embedding; and two chat templates."""
    folder = make_model("gemma-3", tmp_path / "gemma-3")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(
        {**tokenizer["added_tokens"][-1], "id": 640, "content": "<image_soft_token>", "special": True}
    )
    path.write_text(json.dumps(tokenizer))
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    plain = loaded.chat_template
    loaded.chat_template = {"default": plain, "tool_use": "{{ tools }}"}
    loaded.save_pretrained(folder)
    assert "<image_soft_token>" in path.read_text()
    template = GgufFile(template_from_hf(folder, tmp_path / "t.gguf", "gemma-3"))
    assert len(template.get("tokenizer.ggml.tokens")) == 640
    assert template.get("tokenizer.chat_template") == plain


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
