"""What a process may still allocate, from the kernel's files."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine import cores
from serving.engine.llamacpp import memory
from serving.engine.llamacpp.memory import _cgroup_free
from serving.engine.settings import EngineSettings


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        ("8000", 7000, 8000 - (7000 - 4500)),  # most of what is used are pages of files
        ("8000", 4000, 8000),
        ("2000", 7000, 0),
        ("max", 7000, None),
    ],
)
def test_pages_of_files_do_not_count_as_used(tmp_path: Path, limit: str, used: int, free: int | None) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text("anon 2500\nfile 4600\nactive_file 500\ninactive_file 4000\n")
    assert _cgroup_free(tmp_path) == free


def test_the_tightest_of_a_group_and_its_parents_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm and systemd have it: the group at the root has no limit."""
    own = tmp_path / "slurm" / "job"
    own.mkdir(parents=True)
    for folder, limit in ((own, "max"), (own.parent, "5000"), (tmp_path / "v1", "9223372036854771712")):
        folder.mkdir(exist_ok=True)
        old = folder.name == "v1"
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text("1000\n")
        (folder / "memory.stat").write_text("anon 1000\n")
    monkeypatch.setattr(memory, "cgroup_folders", lambda _: [own, own.parent, tmp_path / "v1", tmp_path])
    assert memory.free_memory_bytes() == 4000


def test_without_a_control_group_there_is_no_limit(tmp_path: Path) -> None:
    assert _cgroup_free(tmp_path) is None


A_SLOT = 8192 * 393_216
"""Bytes of a Phi-3.5-mini's cache in f16: 32 layers, as many key heads as heads, 96 channels each."""


@pytest.fixture
def sixty_four_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen cores, nobody's yet."""
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 64 << 30)
    monkeypatch.setattr(memory, "usable_cores", lambda: [object()] * 16)
    monkeypatch.setattr(memory, "lease_holders", lambda: {os.getpid(), 5000, 5001})
    monkeypatch.setattr(memory, "_allocated", lambda _: 0)
    monkeypatch.setattr(memory, "kv_bytes_per_token", lambda *_: 393_216)


def fit(auto: tuple[str, ...] = ("slots",), **changes: Any) -> tuple[int, int]:
    settings = EngineSettings(**{"cores": 4, "lanes": 1, "slots": 16, "context_tokens": 8192, **changes})
    return memory.fitted(SimpleNamespace(path="judge.gguf"), settings, auto)  # type: ignore[arg-type]


@pytest.mark.usefixtures("sixty_four_gib")
def test_a_large_cache_gets_as_many_slots_as_an_engines_share_of_the_memory_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Four engines of four cores: each has a quarter of 80 % of 64 GiB."""
    assert fit() == (1, (64 << 30) * 8 // 10 // 4 // A_SLOT) == (1, 4)
    assert "4 slots in place of 16: one takes 3072 MiB (context_tokens 8192, auto)" in caplog.text
    assert fit(context_tokens=1024) == (1, 16)
    assert fit(cores=16) == (1, 16)
    assert fit(cores=1) == (1, 1)
    assert fit(lanes=2) == (2, 2)
    assert fit(lanes=4, auto=("lanes", "slots"), context_tokens=16384) == (2, 1)


@pytest.mark.usefixtures("sixty_four_gib")
def test_what_is_said_outright_is_kept() -> None:
    assert fit(auto=()) == (1, 16)
    assert fit(gpu_layers=-1) == (1, 16)


@pytest.mark.usefixtures("sixty_four_gib")
def test_engines_that_start_beside_each_other_have_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    first = memory.memory_share(4)
    assert first is not None
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: (64 << 30) - 2 * first)
    monkeypatch.setattr(memory, "_allocated", lambda pid: {5000: first, 5001: first}[pid])
    assert memory.memory_share(4) == first


def test_who_holds_cores_is_known_by_the_kernel(tmp_path: Path) -> None:
    if not Path("/proc/locks").exists():
        pytest.skip("this kernel does not tell")
    assert cores.lease_holders(tmp_path) == set()
    lease = cores.CoreLease.acquire(1, folder=tmp_path)
    if not lease.cpus:
        pytest.skip("no cores to own here")
    assert cores.lease_holders(tmp_path) == {os.getpid()}
    lease.release()
    assert cores.lease_holders(tmp_path) == set()


def test_a_processs_own_memory_is_told_and_of_no_process_none() -> None:
    assert 2**20 < memory._allocated(os.getpid()) < 2**40
    assert memory._allocated(2**22 + 1) == 0
