from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ray_jobs.orpo import flops
from ray_jobs.orpo.flops import count_flops, matrix_rate
from ray_jobs.orpo.fused import fuse_layers
from ray_jobs.orpo.models import causal_lm_of
from ray_jobs.orpo.packing import pack
from ray_jobs.orpo.step import enable_packed_step
from tests.unit.orpo.tiny import random_pairs, tiny_llama, with_adapters


def added_product(
    _total: torch.Size, left: torch.Size, right: torch.Size, out_shape: torch.Size | None = None
) -> int:
    """The operations of addmm_, which PyTorch's counter does not know."""
    assert out_shape is not None
    return 2 * out_shape[0] * left[1] * right[1]


def test_matrix_products_of_a_step_are_the_ones_that_run() -> None:
    model = with_adapters(tiny_llama())
    causal_lm = causal_lm_of(model)
    enable_packed_step(causal_lm)
    fuse_layers(causal_lm)
    packed = pack(random_pairs(3))
    counted = count_flops(causal_lm)
    ops = torch.ops.aten
    with FlopCounterMode(display=False, custom_mapping={ops.addmm_: added_product}) as counter:
        result = model(packed=packed)
        (result.chosen_B - result.rejected_B + result.nll_sum_B).sum().backward()
    ran = counter.get_flop_counts()["Global"]
    linear_layers = sum(ran[op] for op in (ops.mm, ops.addmm, ops.addmm_))
    without_attention = replace(counted, attention_width=0)
    assert without_attention.of_rows(packed.spans, len(packed.label_N)) == pytest.approx(
        linear_layers, rel=1e-9
    )


def test_whole_model_training_costs_half_as_much_again() -> None:
    span = pack(random_pairs(1)).spans
    frozen = count_flops(causal_lm_of(with_adapters(tiny_llama())))
    trained = count_flops(tiny_llama())
    assert trained.trains_base
    assert not frozen.trains_base
    without = [
        replace(count, adapter_weights=0, attention_width=0).of_rows(span, 10) for count in (frozen, trained)
    ]
    assert without[1] == 1.5 * without[0]


def test_weights_that_lie_elsewhere_count_too() -> None:
    """ZeRO-3 leaves a process none of a matrix, QLoRA half as many numbers."""
    model = with_adapters(tiny_llama())
    whole = count_flops(causal_lm_of(model))
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    assert count_flops(causal_lm_of(model)) == whole


def test_matrix_rate_is_a_rate() -> None:
    assert matrix_rate(torch.device("cpu"), torch.float32) > 1e8


@pytest.mark.parametrize(("rate", "size"), [(3e8, 256), (6e10, 1024), (1e15, 4096)])
def test_matrices_are_as_large_as_the_rate_allows(
    monkeypatch: pytest.MonkeyPatch, rate: float, size: int
) -> None:
    sizes = []

    def product_seconds(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
        sizes.append(size)
        return 2 * size**3 / rate

    monkeypatch.setattr(flops, "_product_seconds", product_seconds)
    assert matrix_rate(torch.device("cpu"), torch.bfloat16) == pytest.approx(rate)
    assert sizes[-2:] == [size, size]
