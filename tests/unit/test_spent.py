"""What engines took is written down once, by the attempt that says most."""

from pathlib import Path

from ray_jobs.runs import RunFolder
from ray_jobs.stages.spent import Spent, keep, read, resident_bytes


def test_the_attempt_that_wrote_most_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    keep(folder, "base", None)
    assert read(folder, "base") is None
    whole, rest = Spent(10.0, 2, 4, 800, 10**9), Spent(9.0, 2, 4, 8, 2 * 10**9)
    keep(folder, "base", rest)
    keep(folder, "base", whole)
    keep(folder, "base", rest)
    assert read(folder, "base") == whole
    assert read(folder, "candidate") is None
    assert (whole.tokens_per_s, whole.tokens_per_s_and_core) == (80.0, 10.0)


def test_resident_memory_counts_what_is_held() -> None:
    before = resident_bytes()
    if before == 0:  # the system does not tell
        return
    held = bytearray(b"x" * (1 << 26))
    assert resident_bytes() - before > (1 << 25)
    assert len(held) == 1 << 26
