"""Memory that runs out: a control group with a limit, in which the kernel kills who goes over it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
MIB = 2**20
FULL = 1024 * MIB
"""No process fills more than this, whatever the system lets it."""


@contextmanager
def limited_group(limit: int) -> Iterator[Path | None]:
    """A group whose processes have `limit` bytes together; None where no such group can be made."""
    group = _made(limit)
    try:
        yield group
    finally:
        if group is not None:
            group.rmdir()


def _made(limit: int) -> Path | None:
    for parent, field in _parents():
        group = parent / f"memory-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / field).write_text(str(limit))
        except OSError:
            group.rmdir()
        else:
            return group
    return None


def _parents() -> Iterator[tuple[Path, str]]:
    """Where groups of this process lie, by the first and the second kind of control groups."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if "memory" in kinds.split(","):
            yield MOUNT / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
        elif not kinds:
            yield MOUNT / path.lstrip("/"), "memory.max"


def fill(group: Path) -> None:
    """Goes over the group's limit; does not return from it."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    held = [b"x" * MIB]
    while len(held) * MIB < FULL:
        held.append(bytes(held[-1][1:]) + b"y")
    raise AssertionError("the limit of memory did not hold")
