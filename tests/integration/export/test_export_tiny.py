"""The whole export on a tiny model: adapters, wrong layouts, wrong files, local GGUF bases."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_jobs.errors import ModelError
from ray_jobs.export import families, gguf_tensors
from ray_jobs.export.adapter import base_shapes, check_adapter
from ray_jobs.export.adapter_gguf import write_adapter_gguf
from ray_jobs.export.base import BaseModel, resolve_base
from ray_jobs.export.errors import ExportError, ModelMismatch
from ray_jobs.export.export import export_model
from ray_jobs.export.families import Family
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.manifest import Manifest
from ray_jobs.export.merge import load_merged, merged_state
from ray_jobs.export.quantize import tensor_formats
from ray_jobs.export.settings import ExportSettings, ModelSettings
from ray_jobs.search.trials import Trial
from ray_jobs.stages.checkpoints import write_note
from ray_jobs.stages.tune import keep_best

F16 = ExportSettings(quantization="f16", parity_prompts=2, parity_tokens=16)
Adapters = Callable[..., Path]


def quiet(_: str) -> None:
    pass


@pytest.fixture
def make_adapter(tiny: BaseModel, tmp_path: Path) -> Adapters:
    """Saves an adapter with random weights, as training would leave it."""

    def make(**settings: Any) -> Path:
        torch.manual_seed(5)
        base = AutoModelForCausalLM.from_pretrained(tiny.hf_dir, dtype=torch.float32)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        for name, value in settings.items():
            setattr(config, name, value)
        model = get_peft_model(base, config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
            if "magnitude" in name:
                weight.data *= 1 + 0.2 * torch.rand_like(weight)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "some layers": {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
    "ranks by layer": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    "output layer": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_weights_give_the_adapted_model_s_logits(
    tiny: BaseModel, make_adapter: Adapters, kind: str
) -> None:
    from peft import PeftModel

    folder = make_adapter(**ADAPTERS[kind])
    adapter = check_adapter(folder, base_shapes(tiny.hf_dir), tied=False)
    merged = load_merged(tiny.hf_dir, adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny.hf_dir, dtype=torch.float32)
    before = {name: values.clone() for name, values in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, folder).eval()
    ids = torch.arange(40, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)
    changed = {name for name, values in merged_state(merged).items() if not torch.equal(values, before[name])}
    assert changed <= adapter.touched
    if kind != "output layer":
        assert changed == adapter.touched


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapted_model_is_exported_with_parity(
    tiny: BaseModel, make_adapter: Adapters, kind: str, tmp_path: Path
) -> None:
    steps: list[str] = []
    adapter = make_adapter(**ADAPTERS[kind])
    manifest = export_model(tiny, adapter, tmp_path / "out", F16, steps.append)
    assert manifest.parity.tokens == manifest.parity.identical + manifest.parity.near_ties > 0
    assert manifest.parity.max_relative_compute_error < 0.05
    assert manifest.adapter_sha256 is not None
    assert steps[0] == "merging the adapter into the base"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "model.gguf"]


def test_an_adapter_of_another_base_is_refused_before_loading(
    tiny: BaseModel, make_adapter: Adapters, tmp_path: Path
) -> None:
    adapter = make_adapter()
    path = adapter / "adapter_model.safetensors"
    weights = {name.replace("layers.3", "layers.4"): values for name, values in load_file(path).items()}
    save_file(weights, path)
    steps: list[str] = []
    with pytest.raises(ModelMismatch, match=r"layers\.4\..*which the base does not have"):
        export_model(tiny, adapter, tmp_path / "out", F16, steps.append)
    assert steps == []


def test_an_adapter_that_lost_weights_is_refused(
    tiny: BaseModel, make_adapter: Adapters, tmp_path: Path
) -> None:
    adapter = make_adapter()
    path = adapter / "adapter_model.safetensors"
    save_file({name: values for name, values in load_file(path).items() if "layers.2" not in name}, path)
    with pytest.raises(ModelMismatch, match=r"layers\.2\..* is missing"):
        export_model(tiny, adapter, tmp_path / "out", F16, quiet)


def test_rows_in_the_wrong_order_are_caught(
    tiny: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_tensors, "interleave_rope", lambda values, _: values)
    with pytest.raises(ExportError, match="does not compute what the model does"):
        export_model(tiny, None, tmp_path / "out", F16, quiet)
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_norms_are_caught(tiny: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Family("llama", interleaves_rope=True, norm_offset=0.05)
    monkeypatch.setattr(families, "FAMILIES", {"llama": wrong})
    with pytest.raises(ExportError, match="does not compute what the model does"):
        export_model(tiny, None, tmp_path / "out", F16, quiet)


def test_a_template_with_other_words_is_caught(tiny: BaseModel, tmp_path: Path) -> None:
    hf_dir = tmp_path / "model"
    shutil.copytree(tiny.hf_dir, hf_dir)
    (hf_dir / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    with pytest.raises(ModelMismatch, match="its chat template is not the base's"):
        export_model(dataclasses.replace(tiny, hf_dir=hf_dir), None, tmp_path / "out", F16, quiet)


def test_a_base_that_lost_weights_is_refused(tiny: BaseModel, tmp_path: Path) -> None:
    hf_dir = tmp_path / "model"
    shutil.copytree(tiny.hf_dir, hf_dir)
    path = hf_dir / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        load_merged(hf_dir, None)


def test_a_template_of_another_base_with_equal_shapes_is_caught(
    tiny: BaseModel, other_tiny: Path, tmp_path: Path
) -> None:
    export_model(tiny, None, tmp_path / "one", F16, quiet)
    other = resolve_base(
        ModelSettings(base=str(other_tiny), gguf=str(tmp_path / "one" / "model.gguf")), tmp_path / "cache"
    )
    with pytest.raises(ModelMismatch, match="is not the base's GGUF"):
        export_model(other, None, tmp_path / "two", F16, quiet)
    same = dataclasses.replace(tiny, gguf=tmp_path / "one" / "model.gguf")
    found = export_model(same, None, tmp_path / "three", F16, quiet).untouched
    assert found.tensors == len(GgufFile(same.gguf).tensors) - 1  # all but rope_freqs
    assert 0 < found.max_relative_error < 1e-3


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0", "q4_k_m", "bf16"])
def test_the_same_inputs_give_the_same_bytes(
    tiny: BaseModel,
    make_adapter: Adapters,
    tmp_path: Path,
    quantization: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = F16.model_copy(update={"quantization": quantization, "keep_f16": True})
    adapter = make_adapter()
    with caplog.at_level(logging.WARNING, "ray_jobs.export"):
        first = export_model(tiny, adapter, tmp_path / "a", settings, quiet)
    second = export_model(tiny, adapter, tmp_path / "b", settings, quiet)
    assert (tmp_path / "a" / "model.gguf").read_bytes() == (tmp_path / "b" / "model.gguf").read_bytes()
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()
    assert first == second
    assert first.bytes == (tmp_path / "a" / "model.gguf").stat().st_size
    assert first.recipe.tensor_formats == tensor_formats(tmp_path / "a" / "model.gguf")
    assert (tmp_path / "a" / "model-f16.gguf").exists() == (quantization != "bf16")
    rows_of_64_do_not_hold_blocks_of_256 = quantization in ("q4_0", "q4_k_m")  # q4_0: its output layer
    assert ("fallback" in caplog.text) == rows_of_64_do_not_hold_blocks_of_256


@pytest.mark.parametrize("pure", [False, True])
def test_pure_quantises_the_embedding_and_the_output_too(tiny: BaseModel, tmp_path: Path, pure: bool) -> None:
    settings = F16.model_copy(update={"quantization": "q4_0", "pure": pure})
    formats = export_model(tiny, None, tmp_path / "out", settings, quiet).recipe.tensor_formats
    assert ("Q8_0" in formats or "Q6_K" in formats) != pure
    assert formats["Q4_0"] == 30 if pure else formats["Q4_0"] < 30


def test_the_embedding_and_the_output_can_have_a_format_of_their_own(tiny: BaseModel, tmp_path: Path) -> None:
    settings = F16.model_copy(update={"quantization": "q4_0", "embedding": "bf16"})
    recipe = export_model(tiny, None, tmp_path / "out", settings, quiet).recipe
    assert recipe.embedding == "bf16"
    assert recipe.tensor_formats["BF16"] in (1, 2)
    assert "Q6_K" not in recipe.tensor_formats
    assert Manifest.read(tmp_path / "out" / "manifest.json").recipe == recipe


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unscaled tiny model as one GGUF file."""
    from export_tiny_models import make_model

    folder = tmp_path_factory.mktemp("gguf")
    make_model("smollm2", folder / "model")
    base = resolve_base(ModelSettings(base=str(folder / "model")), folder / "cache")
    export_model(base, None, folder / "out", F16, quiet)
    return folder / "out" / "model.gguf"


@pytest.mark.parametrize("kind", ["folder", "gguf, tied", "in parts"])
def test_a_model_of_which_all_weights_were_trained_is_exported(
    tiny: BaseModel, tiny_gguf: Path, tmp_path: Path, kind: str
) -> None:
    base = resolve_base(ModelSettings(base=str(tiny_gguf)), tmp_path) if kind == "gguf, tied" else tiny
    checkpoint = Path(trained_whole(base, tmp_path / "training"))
    trained = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if kind == "in parts":
        trained.save_pretrained(checkpoint, max_shard_size="200KB")
        (checkpoint / "model.safetensors").unlink(missing_ok=True)
        assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    write_note(checkpoint, 0, [{"step": 2}])
    best = Trial("t", "done", {}, str(checkpoint), steps=2, seconds=1.0)
    keep_best(best, tmp_path / "best")
    assert not (tmp_path / "best" / "config.json").exists()
    steps: list[str] = []
    manifest = export_model(base, tmp_path / "best", tmp_path / "out", F16, steps.append)
    assert steps[0] == "loading the trained weights"
    assert manifest.parity.max_relative_compute_error < 0.05
    assert (manifest.untouched.tensors, manifest.adapter_sha256 is None) == (0, False)
    written = GgufFile(tmp_path / "out" / "model.gguf").array("blk.1.ffn_up.weight")
    expected = trained.model.layers[1].mlp.up_proj.weight.detach().numpy()
    before = AutoModelForCausalLM.from_pretrained(base.hf_dir).model.layers[1].mlp.up_proj.weight
    np.testing.assert_allclose(written, expected, rtol=1e-3, atol=1e-6)
    assert not np.allclose(written, before.detach().float().numpy(), rtol=1e-3, atol=1e-6)


def trained_whole(base: BaseModel, folder: Path) -> str:
    """The checkpoint of two steps on all weights."""
    from ray_jobs.orpo.settings import TrainingSettings
    from ray_jobs.orpo.training import train
    from tests.unit.orpo.tiny import text_pairs

    settings = TrainingSettings(
        lora=None,
        num_steps=2,
        pairs_per_step=2,
        learning_rate=1e-2,
        warmup_share=0,
        precision="fp32",
        compile="off",
    )
    outcome = train(
        settings,
        model_dir=str(base.hf_dir),
        train_pairs=text_pairs(4),
        heldout_pairs=text_pairs(2, seed=1),
        output_dir=str(folder),
        on_eval=lambda *_: None,
    )
    return outcome.checkpoint_dir


def test_a_gguf_base_is_dequantised_once_and_exports_to_itself(tiny_gguf: Path, tmp_path: Path) -> None:
    settings = ModelSettings(base=str(tiny_gguf))
    base = resolve_base(settings, tmp_path)
    made = {path: path.stat().st_mtime_ns for path in base.hf_dir.iterdir()}
    assert base.gguf == tiny_gguf
    export_model(base, None, tmp_path / "out", F16, quiet)
    assert (tmp_path / "out" / "model.gguf").read_bytes() == tiny_gguf.read_bytes()
    assert resolve_base(settings, tmp_path) == base
    assert {path: path.stat().st_mtime_ns for path in base.hf_dir.iterdir()} == made
    tokenizer = AutoTokenizer.from_pretrained(base.hf_dir)
    original = AutoTokenizer.from_pretrained(tiny_gguf.parents[1] / "model")
    text = "Die Straße 12345 kostet 3,50 €.\n\n  def f(x): 🧀<|end|>"
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]


def test_two_processes_dequantise_side_by_side(tiny_gguf: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ray_jobs.export.base import resolve_base; "
        "from ray_jobs.export.settings import ModelSettings; "
        "print(resolve_base(ModelSettings(base=sys.argv[1]), Path(sys.argv[2])).hf_dir)"
    )
    command = [sys.executable, "-c", code, str(tiny_gguf), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=300)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "dequantised").iterdir()] == [Path(folders.pop()).name]


def test_a_gguf_base_without_a_chat_template_or_with_scaled_rope_is_refused(
    tiny: BaseModel, tiny_gguf: Path, tmp_path: Path
) -> None:
    export_model(tiny, None, tmp_path / "scaled", F16, quiet)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight: a GGUF with scaled rope cannot be the base"):
        resolve_base(ModelSettings(base=str(tmp_path / "scaled" / "model.gguf")), tmp_path)
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(tiny_gguf.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_tomplate"))
    with pytest.raises(ModelError, match=r"bare\.gguf: has no chat template: not an instruct model"):
        resolve_base(ModelSettings(base=str(bare)), tmp_path)


def test_a_failed_export_leaves_no_old_manifest(
    tiny: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny, None, tmp_path / "out", F16, quiet)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["base"]["sha256"] == tiny.sha256
    monkeypatch.setattr(gguf_tensors, "interleave_rope", lambda values, _: np.zeros_like(values))
    with pytest.raises(ExportError):
        export_model(tiny, None, tmp_path / "out", F16, quiet)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("kind", ["lora", "rank-stabilised", "ranks by layer"])
def test_an_adapter_as_a_file_of_its_own_computes_the_same(
    tiny: BaseModel, make_adapter: Adapters, tmp_path: Path, kind: str
) -> None:
    from llama_cpp import Llama

    adapter_dir = make_adapter(**ADAPTERS[kind])
    export_model(tiny, None, tmp_path / "base", F16, quiet)
    write_adapter_gguf(tiny.hf_dir, adapter_dir, tmp_path / "adapter.gguf")
    merged = load_merged(tiny.hf_dir, check_adapter(adapter_dir, base_shapes(tiny.hf_dir), tied=False))
    ids = list(range(40, 60))
    options: dict[str, Any] = {"n_ctx": 64, "logits_all": True, "verbose": False}
    llama = Llama(str(tmp_path / "base" / "model.gguf"), lora_path=str(tmp_path / "adapter.gguf"), **options)
    llama.eval(ids)
    with torch.inference_mode():
        expected = merged(torch.tensor([ids])).logits[0].numpy()
    error = np.sqrt(np.square(llama.scores[: len(ids)] - expected).mean())
    assert error < 0.02 * expected.std()  # what an F16 base costs; without the adapter it is 1


def test_dora_cannot_be_kept_apart(tiny: BaseModel, make_adapter: Adapters, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be kept apart from the base"):
        write_adapter_gguf(tiny.hf_dir, make_adapter(use_dora=True), tmp_path / "adapter.gguf")
