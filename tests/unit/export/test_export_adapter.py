"""Adapters are checked from their files alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_files import LAYER, SHAPES, write_adapter

from ray_jobs.errors import ModelError
from ray_jobs.export.adapter import check_adapter
from ray_jobs.export.errors import ModelMismatch

QUERY = f"base_model.model.{LAYER}.self_attn.q_proj"


def lora(rows: int = 8, columns: int = 8) -> dict[str, Any]:
    return {
        f"{QUERY}.lora_A.weight": np.zeros((2, columns), np.float32),
        f"{QUERY}.lora_B.weight": np.zeros((rows, 2), np.float32),
    }


def test_a_fitting_adapter_says_what_it_touches(tmp_path: Path) -> None:
    weights = lora() | {f"{QUERY}.lora_magnitude_vector.weight": np.ones(8, np.float32)}
    adapter = check_adapter(write_adapter(tmp_path / "a", weights), SHAPES, tied=True)
    assert adapter.touched == {f"{LAYER}.self_attn.q_proj.weight"}


@pytest.mark.parametrize(("weights", "part"), [(lora(rows=16), "lora_B"), (lora(columns=16), "lora_A")])
def test_an_adapter_of_another_width_is_refused(tmp_path: Path, weights: dict[str, Any], part: str) -> None:
    with pytest.raises(
        ModelMismatch, match=rf"{part}.*the base's {LAYER}.self_attn.q_proj.weight is \[8, 8\]"
    ):
        check_adapter(write_adapter(tmp_path / "a", weights), SHAPES, tied=True)


def test_an_adapter_with_more_layers_is_refused(tmp_path: Path) -> None:
    weights = {name.replace("layers.0", "layers.1"): values for name, values in lora().items()}
    with pytest.raises(
        ModelMismatch, match=r"layers\.1\.self_attn\.q_proj\.weight, which the base does not have"
    ):
        check_adapter(write_adapter(tmp_path / "a", weights), SHAPES, tied=True)


def test_a_shared_embedding_cannot_be_adapted(tmp_path: Path) -> None:
    weights = {"base_model.model.lm_head.lora_A.weight": np.zeros((2, 8), np.float32)}
    shapes = {**SHAPES, "lm_head.weight": (12, 8)}
    with pytest.raises(ModelMismatch, match="shares between its first and last layer"):
        check_adapter(write_adapter(tmp_path / "a", weights), shapes, tied=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "only LoRA and DoRA"),
        ({"init_lora_weights": "pissa"}, "changes the base's own weights"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_adapter(write_adapter(tmp_path / "a", lora(), **changes), SHAPES, tied=True)


def test_pickled_missing_and_cut_weights_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", lora())
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        check_adapter(folder, SHAPES, tied=True)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        check_adapter(folder, SHAPES, tied=True)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json: is damaged"):
        check_adapter(folder, SHAPES, tied=True)
