"""A whole run in an object store: killed twice, taken up, found done, on one node and on a fresh one."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.files import sha256_of
from serving.registry import Registry, model_here
from serving.storage.node_cache import local_copy
from serving.storage.remote import Remote

ROOT = Path(__file__).parents[3]
STORAGE, REGISTRY = "s3://bucket/runs", "s3://bucket/registry"
RUN = Remote(f"{STORAGE}/chaos")
NUM_PROMPTS, NUM_TRIALS, NUM_STEPS = 48, 2, 10
CHANGES = (
    f"storage={STORAGE}",
    f"registry={REGISTRY}",
    f"data.num_prompts={NUM_PROMPTS}",
    f"search.num_trials={NUM_TRIALS}",
    f"training.num_steps={NUM_STEPS}",
    "search.max_concurrent_trials=1",
    "engine.rows_per_block=2",
)
SETS = [part for change in CHANGES for part in ("--set", change)]
LIMIT_S = 240.0


def command(*more: str) -> list[str]:
    module = "tests.integration.storage.stub_on_store"
    return [sys.executable, "-m", module, "tests/chaos/stub.yaml", *SETS, *more]


def pipeline(environment: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*more), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )


def killed(environment: dict[str, str], log: Path, when: Callable[[], bool]) -> None:
    """Starts the pipeline and kills its driver with SIGKILL as soon as something has come true."""
    end = time.monotonic() + LIMIT_S
    with (
        log.open("ab") as file,
        subprocess.Popen(command(), env=environment, cwd=ROOT, stdout=file, stderr=file) as driver,
    ):
        while not when():
            assert driver.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)
        driver.send_signal(signal.SIGKILL)


def blocks() -> list[str]:
    return [name for name in RUN.listing() if re.search(r"answers/candidate/unfinished/rows-", name)]


def ids(name: str) -> list[str]:
    return list(pq.read_table(local_copy((RUN / name).uri)).column("id").to_pylist())


@pytest.mark.long
def test_a_run_in_a_store_survives_its_drivers_and_ends_whole(node: dict[str, str], tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    steps.mkdir()
    environment = node | {"STUB_LOG": str(steps)}
    elsewhere = environment | {"ORPO_CACHE": str(tmp_path / "another-node")}

    def within_the_last_trial() -> bool:
        """Past its first checkpoint, with the others finished."""
        texts = [log.read_text() for log in steps.iterdir()]
        return len(texts) == NUM_TRIALS and sum("step 7" in text for text in texts) == NUM_TRIALS

    killed(environment, tmp_path / "log", within_the_last_trial)
    killed(environment, tmp_path / "log", lambda: len(blocks()) >= 3)
    kept = blocks()
    done = pipeline(environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "generate takes up" in done.stderr
    assert f"report     {RUN.uri}/report/report.html" in done.stdout

    # Nothing finished was done again, and every row is there once.
    logs = [log.read_text() for log in steps.iterdir()]
    trials = [Counter(log.splitlines()) for log in logs]
    assert len(trials) == NUM_TRIALS
    assert all(trial[f"step {step}"] == 1 for trial in trials for step in range(1, 6))
    assert not [log for log in logs if "finished\nstep" in log], "a finished trial was trained again"
    assert sum(trial.total() > NUM_STEPS + 1 for trial in trials) <= 1
    table = pq.read_table(local_copy((RUN / "tune/trials.parquet").uri)).to_pylist()
    assert [trial["status"] for trial in table] == ["done"] * NUM_TRIALS
    assert len(kept) >= 3
    answers = {model: ids(f"answers/{model}/part-00000.parquet") for model in ("base", "candidate")}
    assert len(set(answers["base"])) == NUM_PROMPTS
    assert answers["base"] == answers["candidate"] == ids("data/prompts.parquet")
    there = RUN.listing()
    assert not [name for name in there if "unfinished" in name or name.startswith("owners/")]
    state = json.loads((RUN / "state.json").read())
    assert {stage["status"] for stage in state.values()} == {"done"}
    recorded = {name: sha256 for stage in state.values() for name, sha256 in stage["outputs"].items()}
    assert {name: sha256_of(local_copy((RUN / name).uri)) for name in recorded} == recorded
    assert {"report/report.html", "report/report.json", "config.yaml"} <= there.keys()

    # Again, on this node and on one that has nothing yet: there is nothing to do.
    for again in (pipeline(environment), pipeline(elsewhere)):
        assert again.returncode == 0, again.stderr[-3000:]
        assert len(re.findall("done before, nothing to do", again.stderr)) == len(state)
    assert RUN.listing().keys() == there.keys()

    # The champion is in the registry, and a node fetches it.
    champion = Registry.at(REGISTRY).champion()
    assert champion is not None
    assert champion.report == f"{RUN.uri}/report/report.json"
    assert sha256_of(model_here(champion.model, champion.sha256)) == champion.sha256


def test_a_check_looks_for_the_store(node: dict[str, str]) -> None:
    module = [sys.executable, "-m", "ray_jobs.pipeline", "tests/chaos/stub.yaml", "--check"]

    def check(*changes: str) -> subprocess.CompletedProcess[str]:
        sets = [part for change in changes for part in ("--set", change)]
        return subprocess.run([*module, *sets], env=node, cwd=ROOT, capture_output=True, text=True)

    fine = check(f"storage={STORAGE}", f"registry={REGISTRY}")
    assert fine.returncode == 0, fine.stderr
    assert f"kept in {STORAGE}/chaos" in fine.stdout
    missing = check("storage=s3://nowhere/runs")
    assert missing.returncode == 2
    assert missing.stderr == "error: storage: s3://nowhere/runs: there is no such bucket\n"
    no_base = check("model.base=s3://bucket/models/nothing")
    assert no_base.returncode == 2
    assert no_base.stderr == "error: s3://bucket/models/nothing: there is no such model\n"
    unknown = check(f"storage={STORAGE}", "registry=oss://bucket/registry")
    assert unknown.returncode == 2
    assert re.fullmatch(r"error: registry: oss://bucket/registry: .*ossfs.*\n", unknown.stderr)
