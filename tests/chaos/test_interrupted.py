"""Whole pipelines of stubs that are killed or interrupted, in processes of their own."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ray_jobs.runs import RunFolder
from tests.chaos.harness import ROOT, Chaos, descendants
from tests.chaos.results import compare

CONFIG = ROOT / "tests/chaos/stub.yaml"


@pytest.mark.long
def test_a_pipeline_that_is_killed_three_times_loses_and_repeats_nothing(
    unbroken: Path, tmp_path: Path
) -> None:
    chaos = Chaos(tmp_path, real=False, seed=3, mean_s=1.0)
    root = chaos.broken(3, None)
    assert chaos.num_kills == 3
    assert compare(unbroken, root) == []
    assert not chaos.report()["strays"]
    report = RunFolder(root).read_json("report/report.json")
    assert report["num_prompts"] == report["num_scored_both"] == 160


@pytest.mark.long
def test_a_second_command_is_refused_and_an_interrupt_ends_the_first_with_all_that_it_started(
    tmp_path: Path,
) -> None:
    line = [sys.executable, "-m", "tests.chaos.stub_pipeline", str(CONFIG)]
    changes = [f"storage={tmp_path}/runs", f"registry={tmp_path}/registry"]
    sets = [part for change in changes for part in ("--set", change)]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen([*line, *sets], cwd=ROOT, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs/chaos/tune").glob("experiment/*.json")):
        assert driver.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = subprocess.run([*line, *sets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 3
    assert f"process {driver.pid} on {socket.gethostname()} works on this run since" in second.stderr
    family = descendants(driver.pid)
    assert family
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [process.name() for process in alive] == []
    assert "error: stopped; the same command goes on from here" in (tmp_path / "log").read_text()
    assert RunFolder(tmp_path / "runs/chaos").states()["tune"].status == "failed"
