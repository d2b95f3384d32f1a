"""Leases of cores: exclusive, freed with their process, near each other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.engine import topology
from serving.engine.cores import CoreLease, _choose, pin_this_thread
from serving.engine.errors import CoresUnavailable
from serving.engine.topology import Core, parse_cpu_list, usable_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="the platform has no core affinity"
)

_HOLDER = """
import sys
from pathlib import Path
from serving.engine.cores import CoreLease
lease = CoreLease.acquire(1, folder=Path(sys.argv[1]))
print(lease.cpus[0], flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> list[Core]:
    cores = [Core(0, 0), Core(1, 0), Core(8, 1), Core(9, 1)]
    monkeypatch.setattr("serving.engine.cores.usable_cores", lambda: cores)
    return cores


def test_leases_do_not_overlap_and_come_back(four_cores: list[Core], tmp_path: Path) -> None:
    first = CoreLease.acquire(2, folder=tmp_path)
    second = CoreLease.acquire(2, folder=tmp_path)
    assert set(first.cpus) | set(second.cpus) == {core.cpu for core in four_cores}
    with pytest.raises(CoresUnavailable, match="other engines hold"):
        CoreLease.acquire(1, wait_s=0, folder=tmp_path)
    first.release()
    first.release()
    with CoreLease.acquire(2, wait_s=0, folder=tmp_path) as third:
        assert third.cpus == first.cpus
    second.release()


def test_a_lease_stays_within_a_memory_node(four_cores: list[Core], tmp_path: Path) -> None:
    with CoreLease.acquire(1, folder=tmp_path) as one, CoreLease.acquire(2, folder=tmp_path) as two:
        assert one.cpus == (0,)
        assert two.cpus == (8, 9)
    assert [core.cpu for core in _choose(four_cores, 3)] == [0, 1, 8]


@pytest.mark.usefixtures("four_cores")
def test_more_cores_than_the_process_may_use(tmp_path: Path) -> None:
    with pytest.raises(CoresUnavailable, match="5 cores asked for, but this process may use only 4"):
        CoreLease.acquire(5, folder=tmp_path)


@contextlib.contextmanager
def holding(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has leased a core."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip()
        with pytest.raises(CoresUnavailable):
            CoreLease.acquire(len(usable_cores() or []), wait_s=0, folder=folder)
        yield holder
        holder.kill()


def test_a_killed_process_frees_its_cores(tmp_path: Path) -> None:
    with holding(_HOLDER, tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with CoreLease.acquire(len(usable_cores() or []), wait_s=5, folder=tmp_path) as lease:
            assert sorted(lease.cpus) == sorted(core.cpu for core in usable_cores() or [])


def test_a_process_that_hangs_on_its_way_out_frees_its_cores(tmp_path: Path) -> None:
    program = "import atexit, sys\natexit.register(sys.stdin.read)\n" + _HOLDER
    with holding(program, tmp_path) as holder:
        assert holder.stdin is not None
        print(file=holder.stdin, flush=True)
        CoreLease.acquire(len(usable_cores() or []), wait_s=10, folder=tmp_path).release()
        assert holder.poll() is None


@pytest.mark.usefixtures("four_cores")
def test_a_forked_child_does_not_keep_its_parents_cores(tmp_path: Path) -> None:
    lease = CoreLease.acquire(4, folder=tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # lives until the parent closes the pipe
        os._exit(0)
    lease.release()
    again = CoreLease.acquire(4, wait_s=5, folder=tmp_path)
    assert len(again.cpus) == 4
    again.release()
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)


def test_without_affinity_the_lease_is_empty_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.engine.cores.usable_cores", lambda: None)
    assert CoreLease.acquire(3).cpus == ()
    assert "unpinned" in caplog.text
    pin_this_thread(())


def test_one_hyper_thread_per_core_and_a_container_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(topology, "_siblings", lambda cpu: [cpu % 4, cpu % 4 + 4])
    monkeypatch.setattr(topology, "_nodes_of_cpus", lambda: {cpu: cpu % 4 // 2 for cpu in range(8)})
    monkeypatch.setattr(topology, "cpu_quota", lambda: None)
    assert usable_cores() == [Core(0, 0), Core(1, 0), Core(2, 1), Core(3, 1)]
    monkeypatch.setattr(topology, "cpu_quota", lambda: 2.5)
    assert len(usable_cores() or []) == 2
    monkeypatch.setattr(topology, "cpu_quota", lambda: 0.3)
    assert len(usable_cores() or []) == 1


def test_quota_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert topology._read_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert topology.cpu_quota() == 1.5


def test_cpu_lists() -> None:
    assert parse_cpu_list("0-2,5,7-8\n") == [0, 1, 2, 5, 7, 8]
    assert parse_cpu_list("") == []
