"""The kernels for GPUs against their plain forms.

    TRITON_INTERPRET=1 pytest tests/unit/orpo/test_kernels_triton.py

runs them on CPU, where Triton is installed.
"""

import os

import pytest
import torch
from torch import Tensor

from ray_jobs.orpo import kernels
from ray_jobs.orpo.attention_varlen import sequences_of
from ray_jobs.orpo.packing import pack
from tests.unit.orpo.tiny import random_pairs

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA GPU or TRITON_INTERPRET=1", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16().to(DEVICE)


def assert_same(name: str, *args: object, tolerance: float = 0.01) -> None:
    """Both forms on copies of the same arguments: results and arguments are the same afterwards."""
    from ray_jobs.orpo.kernels_triton import FAST

    ours, theirs = ([x.clone() if isinstance(x, Tensor) else x for x in args] for _ in range(2))
    got, wanted = FAST[name](*ours), getattr(kernels, name)(*theirs)
    pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
    for x, y in [*pairs, *((a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, Tensor))]:
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [48, 576, 2048])
def test_norms(width: int) -> None:
    torch.manual_seed(0)
    x, weight, grad, residual = random(37, width), random(width), random(37, width), random(37, width)
    assert_same("rms_norm", x, weight, 1e-5)
    _, rstd = kernels.rms_norm(x, weight, 1e-5)
    assert_same("rms_norm_again", x, weight, rstd)
    assert_same("rms_norm_backward", grad, x, weight, rstd, residual, tolerance=0.03)


@pytest.mark.parametrize("width", [64, 1000, 1536])
def test_activation(width: int) -> None:
    torch.manual_seed(0)
    assert_same("swiglu", random(19, 2 * width))
    assert_same("swiglu_backward", random(19, width), random(19, 2 * width), tolerance=0.03)


@pytest.mark.parametrize(("heads", "key_heads", "width"), [(6, 2, 8), (9, 3, 64), (2, 1, 256), (4, 4, 96)])
def test_rotation(heads: int, key_heads: int, width: int) -> None:
    torch.manual_seed(0)
    spans = pack(random_pairs(3)).spans
    where = sequences_of(spans, torch.device(DEVICE))
    num_tokens, num_keys = len(where.own_T), len(where.token_S)
    angle = torch.randn(num_tokens, width // 2).repeat(1, 2)
    cos, sin = angle.cos().to(DEVICE), angle.sin().to(DEVICE)
    assert_same(
        "rotate_heads", random(num_tokens, (heads + 2 * key_heads) * width), cos, sin, heads + key_heads
    )
    grads = random(num_tokens, heads, width), *(random(num_keys, key_heads, width) for _ in range(2))
    assert_same("rotate_heads_back", *grads, where.own_T, where.again_T, cos, sin, tolerance=0.03)


@pytest.mark.parametrize("vocabulary", [300, 4096, 50_001])
def test_log_probabilities(vocabulary: int) -> None:
    torch.manual_seed(0)
    logits, labels = 5 * random(11, vocabulary), torch.randint(0, vocabulary, (11,), device=DEVICE)
    assert_same("log_softmax_at", logits, labels)
    assert_same("softmax_in_place", logits, labels)
