"""The estimate of a training's memory: published sizes, sums by hand, and what layers really keep."""

import pytest
import torch

from ray_jobs.cli.forecast import SIZES
from ray_jobs.orpo.memory import (
    CONTEXT_BYTES,
    FRAGMENTED,
    Shape,
    num_row_tokens,
    shape_of,
    training_memory,
    trials_per_gpu,
)
from ray_jobs.orpo.packing import pack
from ray_jobs.orpo.settings import LoraSettings, TrainingSettings
from ray_jobs.orpo.shapes import SHAPES
from ray_jobs.orpo.training import prepare_packed_step
from tests.unit.orpo.tiny import random_pairs, tiny_llama, with_adapters

SMALL = Shape("llama", 8, 2, 20, 8, 4, 100, tied=True)
SETTINGS = TrainingSettings(max_batch_tokens=1000, max_pair_tokens=300, lora=LoraSettings(rank=2))
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 20
ADAPTER = 2 * (16 + 12 + 12 + 16 + 28 + 28 + 28)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("bundled:smollm2-135m-instruct", "SmolLM2-135M"),
        ("meta-llama/Llama-3.2-1B-Instruct", "Llama-3.2-1B"),
        ("meta-llama/Llama-3.2-3B-Instruct", "Llama-3.2-3B"),
        ("microsoft/Phi-3.5-mini-instruct", "Phi-3.5-mini"),
        ("mistralai/Mistral-Small-Instruct-2409", "Mistral-Small-2409"),
    ],
)
def test_known_shapes_have_the_published_number_of_weights(base: str, name: str) -> None:
    shape = SHAPES[base]
    assert shape.linear_weights + shape.embedding_weights == pytest.approx(SIZES[name], rel=1e-3)


def test_adapters_by_hand() -> None:
    memory = training_memory(SMALL, SETTINGS)
    base = 2 * LAYER + 8 * 100
    assert memory.weights == 2 * base + 2 * 2 * ADAPTER
    assert memory.trained == 16 * 2 * ADAPTER
    assert memory.activations == 1000 * 2 * 2 * (16 + 16 + 8 + 40 + 7 * 2)
    assert memory.logits == 5 * 2 * 1000 * 100
    held = memory.weights + memory.trained + memory.activations + memory.logits
    assert memory.total == CONTEXT_BYTES + held * (1 + FRAGMENTED)


def test_whole_model_in_fp32_by_hand() -> None:
    memory = training_memory(SMALL, TrainingSettings(lora=None, precision="fp32"))
    base = 2 * LAYER + 8 * 100
    assert (memory.weights, memory.trained) == (4 * base, 16 * base)


def test_zero_shards_and_offloads() -> None:
    def of(workers: int, **zero: object) -> float:
        settings = TrainingSettings(lora=None, deepspeed={"zero_optimization": zero})
        return training_memory(SMALL, settings, workers).trained

    base = 2 * LAYER + 8 * 100
    assert of(2, stage=0) == 14 * base
    assert of(2, stage=1) == (2 + 6) * base
    assert of(2, stage=2) == (1 + 6) * base
    assert of(4, stage=3, offload_optimizer={"device": "cpu"}) == 0.5 * base
    stage_3 = TrainingSettings(lora=None, deepspeed={"zero_optimization": {"stage": 3}})
    gathered = 8 * 100 * 2
    assert training_memory(SMALL, stage_3, 4).weights == 2 * base / 4 + gathered


def test_what_saves_memory_is_seen_to() -> None:
    def total(**changes: object) -> float:
        return training_memory(
            SHAPES["meta-llama/Llama-3.2-1B-Instruct"], SETTINGS.model_copy(update=changes)
        ).total

    assert total(gradient_checkpointing=True) < total()
    assert total(qlora=True, gradient_checkpointing=True) < total(gradient_checkpointing=True)
    assert total(step="trl") > total()
    assert num_row_tokens(SETTINGS.model_copy(update={"max_pair_tokens": 900})) == 1800


def test_trials_that_fit_together() -> None:
    assert [trials_per_gpu(7.5, size) for size in (7.0, 7.5, 16.0, 80.0)] == [0, 1, 2, 10]


@pytest.mark.parametrize("fused", [True, False])
def test_layers_keep_what_is_counted(fused: bool) -> None:
    """Every tensor that a forward pass keeps, on a model large enough that the small ones do not count."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = with_adapters(
        tiny_llama(**sizes, head_dim=16, num_hidden_layers=3), rank=4, lora_dropout=0.0 if fused else 0.1
    )
    lora = LoraSettings(rank=4, dropout=0.0 if fused else 0.1)
    settings = TrainingSettings(precision="fp32", lora=lora, compile="off")
    prepare_packed_step(model, settings, 100.0)
    packed = pack(random_pairs(8, longest=60))
    held = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = model(packed=packed)
    del result
    config = shape_of(model.get_base_model().config.to_dict())
    exact = settings.model_copy(update={"max_batch_tokens": packed.num_tokens, "max_pair_tokens": 16})
    counted = training_memory(config, exact).activations
    assert 0.75 * counted < sum(kept.values()) < 1.15 * counted
