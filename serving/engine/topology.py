"""Which cores this process may use, from what the kernel and the container grant."""

from __future__ import annotations

import os
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_NODE = Path("/sys/devices/system/node")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core: one hyper-thread of it, and the memory node that it is next to."""

    cpu: int
    node: int


def usable_cores() -> list[Core] | None:
    """The physical cores that this process may use, one hyper-thread of each; None where the platform cannot
    say.

    Where a container grants less processor time than it shows cores, that many cores are taken, starting at a
    place that depends on the container's name, so that neighbours spread out.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = _one_per_core(sorted(os.sched_getaffinity(0)))
    quota = cpu_quota()
    if quota is None or quota >= len(cores):
        return cores
    first = zlib.crc32(socket.gethostname().encode()) % len(cores)
    return [*cores[first:], *cores[:first]][: max(1, int(quota))]


def cpu_quota() -> float | None:
    """Processors' worth of time that the control group grants, or None without a limit."""
    quotas = [quota for folder in cgroup_folders("cpu") if (quota := _read_quota(folder)) is not None]
    return min(quotas, default=None)


def parse_cpu_list(text: str) -> list[int]:
    """The kernel's list format: `0-2,5` -> [0, 1, 2, 5]."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus += range(int(first), int(last or first) + 1)
    return cpus


def _one_per_core(cpus: list[int]) -> list[Core]:
    nodes = _nodes_of_cpus()
    taken: set[int] = set()
    cores: list[Core] = []
    for cpu in cpus:
        if cpu not in taken:
            cores.append(Core(cpu, nodes.get(cpu, 0)))
            taken.update(_siblings(cpu))
    return cores


def _siblings(cpu: int) -> list[int]:
    text = _read(_CPU / f"cpu{cpu}" / "topology" / "thread_siblings_list")
    return parse_cpu_list(text) if text else [cpu]


def _nodes_of_cpus() -> dict[int, int]:
    nodes: dict[int, int] = {}
    for folder in _NODE.glob("node[0-9]*"):
        for cpu in parse_cpu_list(_read(folder / "cpulist") or ""):
            nodes[cpu] = int(folder.name.removeprefix("node"))
    return nodes


def cgroup_folders(controller: str) -> list[Path]:
    """This process's control group and its parents, for version 2 and for a controller of version 1."""
    folders = [_CGROUP, _CGROUP / controller]
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUP if not controllers else _CGROUP / controller
        own = root / path.lstrip("/")
        folders += [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return folders


def memory_bytes() -> tuple[int | None, int | None]:
    """Memory of the machine, and the lowest limit of this process's control groups if there is one."""
    total = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = map(memory_limit, cgroup_folders("memory"))
    found = [limit for limit in limits if limit is not None and (total is None or limit < total)]
    return total, min(found, default=None)


def memory_limit(folder: Path) -> int | None:
    """Bytes that a control group grants; None: without a limit, or there is no such group."""
    limit = first_of(folder, "memory.max", "memory.limit_in_bytes") or ""
    return int(limit) if limit.isdigit() else None


def first_of(folder: Path, *names: str) -> str | None:
    """The text of the first file that is there: of version 2, else of version 1."""
    return next((text for name in names if (text := _read(folder / name)) is not None), None)


def _read_quota(folder: Path) -> float | None:
    unified = (_read(folder / "cpu.max") or "").split()
    if len(unified) == 2 and unified[0] != "max":
        return int(unified[0]) / int(unified[1])
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
