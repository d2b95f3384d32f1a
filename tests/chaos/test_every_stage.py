"""A pipeline that is killed in the middle of every stage, and at the end of every stage."""

import signal
import time
from pathlib import Path

import psutil

from ray_jobs.command import STAGES
from ray_jobs.runs import RunFolder
from tests.chaos.harness import Chaos, descendants
from tests.chaos.results import compare

POLL_S = 0.02
LIMIT_S = 120


def kill_when(chaos: Chaos, run: RunFolder, stage: str, status: str) -> None:
    """Starts the pipeline and ends it with all its processes as soon as the stage has that status."""
    with chaos.started(run.root.parent.name) as driver:
        end = time.monotonic() + LIMIT_S
        while status_of(run, stage) != status:
            assert driver.poll() is None, f"ended before {stage} was {status}"
            assert time.monotonic() < end, f"{stage} was never {status}"
            time.sleep(POLL_S)
        family = descendants(driver.pid)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    for process in family:
        if process.is_running():
            process.kill()
    psutil.wait_procs(family, timeout=30)


def status_of(run: RunFolder, stage: str) -> str | None:
    if not (run.root / "state.json").exists():
        return None
    state = run.states().get(stage)
    return None if state is None else state.status


def test_a_run_killed_within_and_after_every_stage_comes_to_the_same_report(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, real=False, seed=0, mean_s=1e9)
    unbroken = chaos.unbroken()
    run = RunFolder(tmp_path / "runs" / "broken" / "chaos")
    for stage in STAGES:
        kill_when(chaos, run, stage, "running")
        kill_when(chaos, run, stage, "done")
    assert compare(unbroken, chaos.run("broken")) == []
