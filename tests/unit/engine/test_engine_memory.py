"""What a process may still allocate, from the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.engine.llamacpp import memory
from serving.engine.llamacpp.memory import _cgroup_free


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
