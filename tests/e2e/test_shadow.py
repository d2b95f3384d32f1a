"""Shadow traffic of a real endpoint, judged later by the judge of a real run."""

import re
import subprocess
import time
from pathlib import Path

import httpx
import yaml

from serving.shadow_files import rows_of
from tests.e2e.conftest import Run
from tests.e2e.test_readme import free_port, log_of, process, wait_until_ready

QUESTIONS = ("Name a colour.", "What is two plus three?", "Write in upper case: green tea")


def wait_until_stored(registry: Path, count: int, deadline_s: float = 60) -> None:
    end = time.monotonic() + deadline_s
    while len(rows_of(registry)) < count:
        assert time.monotonic() < end, f"{len(rows_of(registry))} of {count} shadow answers are stored"
        time.sleep(0.1)


def test_shadow_answers_are_judged(
    finished: subprocess.CompletedProcess[str], project: Path, run: Run, environment: dict[str, str]
) -> None:
    """As the documentation deploys it: the shadow is in the `user_config` of the deployment `engine`."""
    port = free_port()
    config = yaml.safe_load((project / "configs/serve.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] = {"registry": str(project / "registry")}
    shadow = {"model": "champion", "share": 1.0}
    application["deployments"] = [{"name": "engine", "user_config": {"shadow": shadow}}]
    (project / "shadow.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    with process("serve run shadow.yaml", project, environment, RAY_ADDRESS="local") as started:
        wait_until_ready(url, started, log_of(project))
        for number, question in enumerate(QUESTIONS, start=1):
            messages = [{"role": "user", "content": question}]
            body = {"messages": messages, "max_tokens": 16, "temperature": 0}
            assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
            wait_until_stored(project / "registry", number)
    judge = "python -m ray_jobs.shadow configs/smoke.yaml --run runs/smoke --set name=shadow"
    refused = run(judge)
    assert refused.returncode == 2, "the run's own metric needs reference answers"
    assert "needs 'reference_answer'" in refused.stderr
    done = run(f"{judge} --set 'judge.metrics=[configs/metrics/instruction-following.yaml]'")
    assert done.returncode == 0, done.stderr
    models, line = done.stdout.splitlines()
    assert re.fullmatch(r"champion [0-9a-f]{12}, shadow [0-9a-f]{12}", models)
    assert ": champion " in line
    assert "shadow better on 0, worse on 0" in line, "the same model wrote the same answers to both"
