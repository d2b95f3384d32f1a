"""A pipeline that is killed in the middle of every stage, and at the end of every stage."""

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from ray_jobs.command import STAGES
from ray_jobs.runs import RunFolder
from tests.chaos.harness import Chaos, descendants
from tests.chaos.results import compare

POLL_S = 0.02
LIMIT_S = 120
HALF_DONE = {
    "tune": "tune/trials/*/checkpoint_*/evaluations-0.json",
    "export": "models/base/model.gguf",
    "generate": "answers/base/unfinished/rows-*",
    "judge": "judgements/unfinished/look-0/blocks/rows-*",
}
"""What a stage has written when it is in its middle; the others write all at their end."""


def kill_when(chaos: Chaos, run: RunFolder, reached: Callable[[], bool], what: str) -> None:
    """Starts the pipeline and ends it with all its processes as soon as it has come so far."""
    with chaos.started(run.root.parent.name) as driver:
        end = time.monotonic() + LIMIT_S
        while not reached():
            assert driver.poll() is None, f"ended before {what}"
            assert time.monotonic() < end, f"never came to {what}"
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


def is_done(run: RunFolder, stage: str) -> bool:
    return status_of(run, stage) == "done"


def in_the_middle(run: RunFolder, stage: str) -> bool:
    """For a stage that writes all at its end: as soon as it has begun, if that is seen before its end."""
    if stage not in HALF_DONE:
        return status_of(run, stage) in ("running", "done")
    return any(run.root.glob(HALF_DONE[stage])) and status_of(run, stage) == "running"


@pytest.mark.parametrize(
    "reached",
    [pytest.param(in_the_middle, id="within"), pytest.param(is_done, id="after", marks=pytest.mark.long)],
)
def test_a_run_killed_at_every_stage_comes_to_the_same_report(
    unbroken: Path, tmp_path: Path, reached: Callable[[RunFolder, str], bool]
) -> None:
    chaos = Chaos(tmp_path, real=False, seed=0, mean_s=1e9)
    run = RunFolder(tmp_path / "runs" / "broken" / "chaos")
    for stage in STAGES:
        kill_when(chaos, run, partial(reached, run, stage), f"{reached.__name__} of {stage}")
    assert compare(unbroken, chaos.run("broken")) == []
