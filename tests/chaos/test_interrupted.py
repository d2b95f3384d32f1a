"""Whole pipelines of stubs that are killed or interrupted, in processes of their own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from ray_jobs.config import load_config
from ray_jobs.records import Answer, as_row, prompt_from_row
from ray_jobs.runs import RunFolder
from ray_jobs.stages import generate
from ray_jobs.stages.trial_table import read_trials
from ray_jobs.tables import PROMPT_COLUMNS, read_rows, table_of
from tests.chaos.harness import ROOT, Chaos, descendants
from tests.chaos.results import TIMES, trained_again
from tests.chaos.stub_pipeline import StubAnswerActor

CONFIG = ROOT / "tests/chaos/stub.yaml"


def unbroken_answers(run: RunFolder, model: str) -> list[dict[str, Any]]:
    """What the model's stub answers, without Ray."""
    config = load_config(CONFIG)
    spec = generate.actor_spec(config, run, model)
    prompts = [as_row(prompt_from_row(row)) for row in read_rows(run.path("data/prompts.parquet"))]
    answers: list[dict[str, Any]] = StubAnswerActor(spec)(table_of(prompts, PROMPT_COLUMNS)).to_pylist()
    return answers


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_a_pipeline_that_is_killed_three_times_loses_and_repeats_nothing(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, real=False, seed=3, mean_s=1.0)
    root = chaos.broken(3, None)
    assert chaos.num_kills == 3
    run = RunFolder(root)
    for model in generate.MODELS:
        rows = read_rows(run.path(generate.ANSWERS.format(model=model)))
        assert set(rows[0]) == set(Answer.COLUMNS)
        assert timeless(rows) == timeless(unbroken_answers(run, model))
    for trial in read_trials(run.path("tune/trials.parquet")):
        state = json.loads((Path(str(trial.checkpoint)) / "adapter_model.safetensors").read_text())
        assert state["step"] == 20
        assert [row["step"] for row in trial.curve] == [5, 10, 15, 20]
    assert trained_again(run.root / "chaos") == []
    assert not chaos.report()["strays"]
    report = run.read_json("report/report.json")
    assert report["num_prompts"] == report["num_scored_both"] == 160


def test_an_interrupt_ends_the_command_and_all_that_it_started(tmp_path: Path) -> None:
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
    family = descendants(driver.pid)
    assert family
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [process.name() for process in alive] == []
    assert "error: stopped; the same command goes on from here" in (tmp_path / "log").read_text()
    assert RunFolder(tmp_path / "runs/chaos").states()["tune"].status == "failed"
