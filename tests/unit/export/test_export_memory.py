"""The memory that merging takes, asked for before a night of trials."""

from types import SimpleNamespace

import pytest

from ray_jobs.errors import ConfigError
from ray_jobs.export import memory

ONE_BILLION = {"model.embed_tokens.weight": (128_256, 2048), "rest": (973_146_112,)}
"""Llama-3.2-1B: 1.236e9 weights."""


def test_five_bytes_a_weight_and_what_libraries_take() -> None:
    assert memory.export_bytes(ONE_BILLION) == 5 * 1_235_814_400 + 1.5 * 2**30


def test_a_head_that_is_too_small_is_told_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "base_shapes", lambda _: ONE_BILLION)
    base = SimpleNamespace(name="meta-llama/Llama-3.2-1B-Instruct", hf_dir=None)
    for total, limit in ((8 << 30, None), (None, None), (64 << 30, 8 << 30)):
        monkeypatch.setattr(memory, "memory_bytes", lambda found=(total, limit): found)
        memory.check_export_memory(base)  # type: ignore[arg-type]
    for total, limit in ((4 << 30, None), (64 << 30, 4 << 30)):
        monkeypatch.setattr(memory, "memory_bytes", lambda found=(total, limit): found)
        with pytest.raises(ConfigError, match=r"merging meta-llama/\S+ takes some 7\.3 GiB .* has 4\.0 GiB"):
            memory.check_export_memory(base)  # type: ignore[arg-type]
