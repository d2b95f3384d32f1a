"""Settings, metadata, manifests and child processes of an export."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from export_files import CONFIG, write_template
from pydantic import ValidationError

from ray_jobs.errors import ModelError
from ray_jobs.export.children import run_module
from ray_jobs.export.errors import ExportError, ModelMismatch
from ray_jobs.export.families import check_window
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import layout_of
from ray_jobs.export.manifest import Manifest, Origin, Recipe
from ray_jobs.export.metadata import check_metadata
from ray_jobs.export.parity import Parity
from ray_jobs.export.quantize import LLAMA_FTYPES, quantize
from ray_jobs.export.rope import rope_tensors
from ray_jobs.export.safetensors_file import read_shapes, write_tensors
from ray_jobs.export.settings import ExportSettings, ModelSettings, Quantization
from ray_jobs.export.template import chat_template
from ray_jobs.export.untouched import Untouched
from ray_jobs.export.vocabulary import CONTROL, NORMAL, UNUSED, read_vocabulary

LAYOUT = layout_of(CONFIG, "config.json")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def test_every_quantisation_has_its_llama_cpp_number() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    assert set(LLAMA_FTYPES) == set(get_args(Quantization))
    for name, number in LLAMA_FTYPES.items():
        assert getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}") == number


def test_settings_are_strict() -> None:
    for settings in ({"quantization": "q3"}, {"parity_prompts": 0}, {"parity_tokens": 1000}, {"pur": True}):
        with pytest.raises(ValidationError):
            ExportSettings.model_validate(settings)
    with pytest.raises(ValidationError):
        ModelSettings(base="")


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "attention.head_count_kv"])
def test_a_template_with_another_number_is_refused(tmp_path: Path, key: str) -> None:
    template = GgufFile(write_template(tmp_path / "t.gguf", **{key: 4}))
    with pytest.raises(ModelMismatch, match=rf"llama\.{key} is 4, the base's is"):
        check_metadata(template, CONFIG, LAYOUT)


def test_a_template_of_another_family_or_theta_is_refused(tmp_path: Path) -> None:
    template = GgufFile(write_template(tmp_path / "t.gguf"))
    check_metadata(template, CONFIG, LAYOUT)
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    with pytest.raises(ModelMismatch, match=r"rope\.freq_base is 10000\.0, the base's is 500000\.0"):
        check_metadata(template, {**CONFIG, "rope_parameters": rope}, LAYOUT)
    qwen = layout_of({**CONFIG, "model_type": "qwen2"}, "config.json")
    with pytest.raises(ModelMismatch, match="is of architecture 'llama', the base needs 'qwen2'"):
        check_metadata(template, CONFIG, qwen)


MISTRAL = {**CONFIG, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({**MISTRAL, "sliding_window": 4096}, True),
        ({**MISTRAL, "sliding_window": None}, False),
        ({**CONFIG, "model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True}, True),
        ({**CONFIG, "model_type": "qwen2", "sliding_window": 9, "use_sliding_window": False}, False),
        ({**CONFIG, "model_type": "qwen2", "sliding_window": 9}, False),
        ({**CONFIG, "model_type": "phi3", "sliding_window": 9}, False),
    ],
)
def test_a_window_that_llama_cpp_does_not_have_is_refused(config: dict[str, Any], refused: bool) -> None:
    with pytest.raises(ModelError, match="with a sliding window of") if refused else nullcontext():
        check_window(config, "config.json")


def test_a_template_of_ones_own_gives_a_base_no_window(tmp_path: Path) -> None:
    template = GgufFile(write_template(tmp_path / "t.gguf", **{"attention.sliding_window": 4096}))
    check_metadata(template, MISTRAL, LAYOUT)
    says = r"t\.gguf: mistral with a sliding window of 4096 tokens has no form in GGUF"
    with pytest.raises(ModelError, match=says):
        check_metadata(template, {**MISTRAL, "sliding_window": 4096}, LAYOUT)


def test_a_template_with_another_window_is_refused(tmp_path: Path) -> None:
    path = write_template(tmp_path / "t.gguf", architecture="phi3", **{"attention.sliding_window": 2047})
    phi = {**CONFIG, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    layout = layout_of(phi, "config.json")
    for fits in ({"sliding_window": 2047}, {"sliding_window": None}):
        check_metadata(GgufFile(path), phi | fits, layout)
    with pytest.raises(ModelMismatch, match=r"phi3\.attention\.sliding_window is 2047, the base's is 4096"):
        check_metadata(GgufFile(path), {**phi, "sliding_window": 4096}, layout)


def test_rope_factors_of_llama_3_by_hand() -> None:
    config = {**CONFIG, "head_dim": 128, "rope_parameters": LLAMA3}
    (factors,) = rope_tensors(config, "config.json").values()
    wavelengths = 2 * np.pi * 10000.0 ** (np.arange(64) / 64)
    assert (factors[wavelengths < 8192 / 4] == 1.0).all()
    assert (factors[wavelengths > 8192 / 1] == 8.0).all()
    middle = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    smooth = (8192 / wavelengths[middle] - 1) / 3
    np.testing.assert_allclose(factors[middle], 1 / ((1 - smooth) / 8 + smooth), rtol=1e-6)
    assert middle.sum() > 5


def test_a_template_must_scale_rope_as_the_base_does(tmp_path: Path) -> None:
    config = {**CONFIG, "rope_parameters": LLAMA3}
    plain = GgufFile(write_template(tmp_path / "plain.gguf"))
    with pytest.raises(ModelMismatch, match=r"rope_freqs\.weight is missing"):
        check_metadata(plain, config, LAYOUT)
    tensors = rope_tensors(config, "config.json")
    check_metadata(GgufFile(write_template(tmp_path / "same.gguf", tensors)), config, LAYOUT)
    other = {name: values * 2 for name, values in tensors.items()}
    with pytest.raises(ModelMismatch, match=r"rope_freqs\.weight differs"):
        check_metadata(GgufFile(write_template(tmp_path / "other.gguf", other)), config, LAYOUT)
    with pytest.raises(ModelMismatch, match=r"rope_freqs\.weight is not the base's"):
        check_metadata(GgufFile(tmp_path / "same.gguf"), CONFIG, LAYOUT)


def test_unknown_rope_scaling_is_refused_by_name() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4}
    with pytest.raises(ModelError, match="rope scaling 'yarn' is not supported"):
        rope_tensors({**CONFIG, "rope_parameters": rope}, "config.json")


def test_manifests_survive_writing_and_say_when_they_are_damaged(tmp_path: Path) -> None:
    manifest = Manifest(
        sha256="0" * 64,
        bytes=1,
        recipe=Recipe("q4_0", False, "1" * 64, {"F32": 1, "Q4_0": 2}),
        base=Origin("base", None, "2" * 64),
        adapter_sha256=None,
        untouched=Untouched(3, 0.1),
        parity=Parity(4, 128, 127, 1, 0.01, 0.0001),
        created_by={"torch": "2"},
    )
    path = tmp_path / "manifest.json"
    manifest.write(path)
    assert Manifest.read(path) == manifest
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ModelError, match="format version 99, not 1"):
        Manifest.read(path)
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"manifest\.json: is damaged"):
        Manifest.read(path)


def test_safetensors_written_in_pieces_are_read_by_the_package(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    pieces = [("a", values[:2]), ("a", values[2:]), ("b", values[0])]
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": (4, 3), "b": (3,)}, pieces)
    found = load_file(path)
    np.testing.assert_array_equal(found["a"], values)
    assert (found["a"].dtype, found["b"].dtype) == (np.float16, np.float32)
    assert read_shapes(path) == {"a": (4, 3), "b": (3,)}
    with pytest.raises(ModelError, match="bytes written"):
        write_tensors(path, {"a": (4, 3)}, pieces[:1])


def test_a_child_that_fails_is_one_line() -> None:
    with pytest.raises(ExportError, match=r"ray_jobs\.export\.nothing: exit code 1: .*No module named"):
        run_module("ray_jobs.export.nothing", [])


def test_a_file_that_cannot_be_quantised_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ExportError, match="cannot quantise"):
        quantize(broken, tmp_path / "out.gguf", "q4_0", pure=False, threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def _tokenizer(path: Path, **changes: object) -> Path:
    data = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [{"id": 4, "content": "<end>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
        **changes,
    }
    (path / "tokenizer.json").write_text(json.dumps(data))
    return path


def test_a_vocabulary_is_filled_up_to_the_embedding(tmp_path: Path) -> None:
    found = read_vocabulary(_tokenizer(tmp_path), 6)
    assert found.tokens == ["a", "b", "ab", "[PAD3]", "<end>", "[PAD5]"]
    assert found.types == [NORMAL, NORMAL, NORMAL, UNUSED, CONTROL, UNUSED]
    assert (found.model, found.pre, found.merges) == ("gpt2", "gpt-2", ["a b"])


def test_an_added_token_beyond_the_embedding_is_left_out(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 1, "ab": 2, "<image>": 6}
    changes = {
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b"]},
        "added_tokens": [
            {"id": 4, "content": "<end>", "special": True},
            {"id": 6, "content": "<image>", "special": True},
        ],
    }
    assert read_vocabulary(_tokenizer(tmp_path, **changes), 6) == read_vocabulary(_tokenizer(tmp_path), 6)


def test_of_several_chat_templates_the_default_is_written(tmp_path: Path) -> None:
    assert chat_template("{{ one }}", tmp_path) == "{{ one }}"
    assert chat_template({"tool_use": "{{ tools }}", "default": "{{ one }}"}, tmp_path) == "{{ one }}"
    with pytest.raises(ModelError, match=r"of its chat templates \(tool_use, rag\) none is named default"):
        chat_template({"tool_use": "", "rag": ""}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "a Unigram tokenizer needs its GGUF"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts words in a way that is not known"),
        ({"model": {"type": "BPE"}}, "is damaged"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0, "b": 6}, "merges": []}},
            "has token 6, the model's embedding has 6 rows",
        ),
    ],
)
def test_tokenizers_without_an_equal_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read_vocabulary(_tokenizer(tmp_path, **changes), 6)
