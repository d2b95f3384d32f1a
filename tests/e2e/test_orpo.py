"""`orpo` on a finished run, and its endpoint on a port of one's own."""

import json
import re
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Run
from tests.e2e.test_readme import Done, free_port, log_of, process, wait_until_ready

ORPO = "python -m ray_jobs"


def test_a_finished_run_is_told_by_orpo(finished: Done, run: Run, project: Path) -> None:
    again = run(f"{ORPO} run configs/smoke.yaml --json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    told = run(f"{ORPO} report configs/smoke.yaml")
    assert f"decision   {found['decision']}: " in told.stdout
    whole = json.loads(run(f"{ORPO} report runs/smoke --json").stdout)
    assert whole["decision"] == found["decision"]
    status = json.loads(run(f"{ORPO} promote status --json").stdout)
    assert status["champion"]["run"] == "smoke"


def test_a_run_leaves_a_data_report_a_modelfile_and_a_card(finished: Done, project: Path) -> None:
    folder = project / "runs/smoke"
    tokens = json.loads((folder / "data/report.json").read_bytes())["tokens"]
    assert tokens["forecast"]["training"] > 1000
    assert "## Forecast" in (folder / "data/report.md").read_text()
    modelfile = (folder / "models/candidate/Modelfile").read_text()
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in modelfile
    card = (folder / "models/candidate/README.md").read_text()
    assert re.search(r"^\*\*(promote|keep_base|inconclusive)\*\*: ", card, re.M)


@pytest.mark.long
def test_orpo_serves_on_another_port(finished: Done, project: Path, environment: dict[str, str]) -> None:
    port = free_port()
    line = f"{ORPO} serve --port {port} --set engine.cores=1 --set max_queued=4"
    with process(line, project, environment, RAY_ADDRESS="local") as started:
        wait_until_ready(f"http://127.0.0.1:{port}", started, log_of(project))
        body = {"messages": [{"role": "user", "content": "Write in upper case: green tea"}], "max_tokens": 4}
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["role"] == "assistant"
