"""Whether llama.cpp was compiled so that attention on AVX512-FP16 is slow: told from what it computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving.engine.llamacpp import half_precision, kernels
from serving.engine.llamacpp.half_precision import sums_in_half_precision


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On any processor, with llama.cpp's own kernels."""
    monkeypatch.setattr(half_precision, "_processor_can", lambda: True)
    monkeypatch.setattr(kernels, "state", lambda: kernels.State(False))
    sums_in_half_precision.cache_clear()
    yield
    sums_in_half_precision.cache_clear()


def attended(query: Any, keys: Any, values: Any, kind: Any) -> Any:
    """As the kernel does it: the weighted values added in f16, each product in `kind`."""
    weights = np.exp(keys.astype(np.float32) @ query[0])
    sums = np.zeros(values.shape[1], np.float16)
    for weight, value in zip(weights, values, strict=True):
        sums = (sums.astype(kind) + value.astype(kind) * kind(weight)).astype(np.float16)
    return sums.astype(np.float32) / weights.sum()


def test_make_setup_builds_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ggml's attention, called as it is here, computes attention."""
    seen: list[Any] = []
    attend = half_precision._attend

    def watched(ggml: Any, query: Any, keys: Any, values: Any) -> Any:
        seen.extend((attend(ggml, query, keys, values), attended(query, keys, values, np.float32)))
        return seen[0]

    monkeypatch.setattr(half_precision, "_attend", watched)
    assert sums_in_half_precision() is False
    if seen:  # not where kernels are loaded at run time
        np.testing.assert_allclose(seen[0], seen[1], rtol=2e-3)


@pytest.mark.parametrize(("kind", "slow"), [(np.float32, False), (np.float16, True)])
def test_the_rounding_tells(
    kind: Any, slow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(half_precision, "_attend", lambda ggml, *arrays: attended(*arrays, kind))
    with caplog.at_level(logging.WARNING):
        assert sums_in_half_precision() is slow
        assert sums_in_half_precision() is slow
    assert len(caplog.records) == slow, "said once"


def test_other_processors_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "_processor_can", lambda: False)
    monkeypatch.delattr(half_precision, "_attend")
    assert sums_in_half_precision() is False


def test_it_does_not_matter_with_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "state", lambda: kernels.State(True))
    monkeypatch.delattr(half_precision, "_attend")
    assert sums_in_half_precision() is False
