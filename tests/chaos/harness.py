"""Runs pipelines and kills parts of them."""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.victims import choose, victims

ROOT = Path(__file__).parents[2]
LIMIT_S = 1800.0
"""A pipeline that has not come to its end by then has hung."""
POLL_S = 0.1
STRAY_S = 120.0


class Chaos:
    """Pipelines in one folder, and what was done to them."""

    def __init__(
        self, folder: Path, *, real: bool, seed: int, mean_s: float, changes: Sequence[str] = ()
    ) -> None:
        self._folder, self._real, self._mean_s, self._changes = folder, real, mean_s, changes
        self._draw = random.Random(seed)
        self._began = time.monotonic()
        self._num_runs = self._num_starts = 0
        self._kills: list[str] = []
        self._recoveries: list[float] = []
        self._strays: Counter[str] = Counter()
        self._unbroken_s = 0.0
        self._down: tuple[float, tuple[int, int]] | None = None
        self._next_kill_s = 0.0

    @property
    def num_kills(self) -> int:
        return len(self._kills)

    def later_than(self, limit_s: float | None) -> bool:
        return limit_s is not None and time.monotonic() - self._began > limit_s

    def unbroken(self) -> Path:
        started = time.monotonic()
        root = self.run("unbroken")
        self._unbroken_s = time.monotonic() - started
        return root

    def broken(self, kills: int, limit_s: float | None) -> Path:
        self._num_runs += 1
        self._next_kill_s = time.monotonic() + self._draw.expovariate(1 / self._mean_s)
        return self.run(f"broken-{self._num_runs}", kills, limit_s)

    def _command(self, name: str) -> list[str]:
        module, config = ("ray_jobs.pipeline", "configs/smoke.yaml")
        if not self._real:
            module, config = ("tests.chaos.stub_pipeline", "tests/chaos/stub.yaml")
        changes = [f"storage={self._folder}/runs/{name}", f"registry={self._folder}/registry/{name}"]
        changes += ["search.max_failures=100", "judge.cache=false", *self._changes]
        sets = [part for change in changes for part in ("--set", change)]
        return [sys.executable, "-m", module, str(ROOT / config), *sets]

    @contextmanager
    def started(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """The pipeline's command; it does not outlive this one."""
        self._num_starts += 1
        with (self._folder / f"{name}.log").open("ab") as log:
            driver = subprocess.Popen(
                self._command(name), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield driver
        finally:
            if driver.poll() is None:
                family = descendants(driver.pid)
                driver.kill()
                driver.wait()
                for process in family:
                    with suppress(psutil.Error):
                        process.kill()

    def run(self, name: str, kills: int = 0, limit_s: float | None = None) -> Path:
        """Starts the pipeline until it ends well, killing on the way; gives its run folder."""
        end, before = time.monotonic() + LIMIT_S, self.num_kills
        root = self._folder / "runs" / name / ("smoke" if self._real else "chaos")
        while True:
            kills_so_far = self.num_kills
            with self.started(name) as driver:
                while driver.poll() is None:
                    if time.monotonic() > end:
                        raise AssertionError(f"{name} hangs: {self._tail(name)}")
                    self._note_recovery(root)
                    if self.num_kills < before + kills and self._is_time() and not self.later_than(limit_s):
                        self._kill(root, driver)
                    time.sleep(POLL_S)
            if driver.returncode == 0:
                self._note_recovery(root)
                return root
            ends = (1, -signal.SIGTERM, -signal.SIGKILL)
            if driver.returncode not in ends or self.num_kills == kills_so_far:
                raise AssertionError(f"{name} ended with {driver.returncode}: {self._tail(name)}")

    def _is_time(self) -> bool:
        """A kill is due some time after the one before it was recovered from."""
        return self._down is None and time.monotonic() > self._next_kill_s

    def _note_recovery(self, root: Path) -> None:
        """Recovered is when something more is finished than when the kill came."""
        if self._down is None or progress(root) == self._down[1]:
            return
        self._recoveries.append(time.monotonic() - self._down[0])
        self._down = None
        self._next_kill_s = time.monotonic() + self._draw.expovariate(1 / self._mean_s)

    def _kill(self, root: Path, driver: subprocess.Popen[bytes]) -> None:
        candidates = victims(driver.pid)
        if not candidates:
            return
        victim, family = choose(candidates, self._draw), descendants(driver.pid)
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._kills.append(victim.kind)
        self._down = (time.monotonic(), progress(root))
        if victim.kind == "driver":
            driver.wait()
            self._watch_strays(family)
            # The command is given again now; what its processes still wrote before they died is no recovery.
            self._down = (time.monotonic(), progress(root))

    def _watch_strays(self, family: list[psutil.Process]) -> None:
        """Whatever outlives its driver by two minutes is counted and ended; Ray's agents take one."""
        _, alive = psutil.wait_procs(family, timeout=STRAY_S)
        for process in alive:
            self._strays[process.name()] += 1
            with suppress(psutil.Error):
                process.kill()

    def _tail(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def report(self) -> dict[str, Any]:
        return {
            "kills": len(self._kills),
            "killed": dict(Counter(self._kills)),
            "pipelines": self._num_runs,
            "starts": self._num_starts,
            "recoveries": len(self._recoveries),
            "recovery_s_median": round(statistics.median(self._recoveries), 1) if self._recoveries else None,
            "recovery_s_max": round(max(self._recoveries), 1) if self._recoveries else None,
            "unbroken_pipeline_s": round(self._unbroken_s, 1),
            "strays": dict(self._strays),
            "seconds": round(time.monotonic() - self._began, 1),
        }


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def progress(root: Path) -> tuple[int, int]:
    """Finished blocks of rows, checkpoints and stages; and the size of the trials' logs."""
    blocks = sum(1 for _ in root.rglob("rows-*.parquet"))
    checkpoints = sum(1 for _ in root.glob("tune/trials/*/checkpoint_*"))
    state = root / "state.json"
    stages = state.read_text().count('"done"') if state.exists() else 0
    logs = sum(log.stat().st_size for log in root.glob("chaos/*.log"))
    return blocks + checkpoints + 1000 * stages, logs
