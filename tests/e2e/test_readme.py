"""The README's commands, word for word but for the config's size."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.conftest import ROOT, Run

Done = subprocess.CompletedProcess[str]


# Every command block of the README, and what runs it here.
COVERED = {
    "make run": "the fixture `finished`, on configs/smoke.yaml",
    "make test": "what runs this test",
    "SERVING_REGISTRY=registry .venv/bin/serve run serving.app:app": "test_the_endpoint_serves…",
    "curl": "test_the_endpoint_serves…, word for word",
    ".venv/bin/python": "test_the_readmes_checks_run, word for word",
    "ray job submit": "test_the_pipeline_and_stages_run_as_submitted_jobs, on configs/smoke.yaml",
}
STAGES = ("tune", "export", "generate", "judge", "verdict", "promote")


def readme_blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    uncovered = [block for block in readme_blocks() if not block.startswith(tuple(COVERED))]
    assert uncovered == []
    unused = [start for start in COVERED if not any(block.startswith(start) for block in readme_blocks())]
    assert unused == []


def test_the_readmes_checks_run(run: Run) -> None:
    blocks = [block for block in readme_blocks() if block.startswith(".venv/bin/python")]
    for block in blocks:
        done = run(block.replace(".venv/bin/", ""), timeout_s=30)
        assert done.returncode == 0, done.stderr
        assert "verdict" in done.stdout


def test_make_run_ends_with_a_decision_a_report_and_the_serve_command(finished: Done, project: Path) -> None:
    assert re.search(r"^decision +(promote|keep_base|inconclusive): ", finished.stdout, re.M)
    assert "serve run serving.app:app" in finished.stdout
    report = json.loads((project / "runs/smoke/report/report.json").read_bytes())
    assert report["num_prompts"] == 24
    assert set(report["models"]) == {"base", "candidate"}
    assert report["program_checks"]["overall"]["n"] == 24
    for name in ("report.md", "report.html"):
        assert (project / "runs/smoke/report" / name).stat().st_size > 1000
    champion = json.loads((project / "registry/champion.json").read_bytes())
    assert champion["run"] == "smoke"
    assert champion["sha256"] in {model["sha256"] for model in report["models"].values()}


def test_a_second_make_run_redoes_nothing(finished: Done, run: Run, project: Path) -> None:
    before = (project / "runs/smoke/state.json").read_bytes()
    done = run(f"make run VENV={os.environ.get('VIRTUAL_ENV', ROOT / '.venv')} CONFIG=configs/smoke.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done before, nothing to do") == 7
    assert "starts" not in done.stderr
    assert (project / "runs/smoke/state.json").read_bytes() == before


def test_a_changed_config_is_refused_under_the_same_name(finished: Done, run: Run, project: Path) -> None:
    text = (project / "configs/smoke.yaml").read_text()
    (project / "changed.yaml").write_text(text.replace("num_steps: 4", "num_steps: 5"))
    done = run("python -m ray_jobs.pipeline changed.yaml")
    assert done.returncode == 2
    assert "training.num_steps (was 4, is 5)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_check_prints_the_plan_of_every_config(config: str, run: Run) -> None:
    if config in ("serve.yaml", "seed-comparison.yaml"):
        pytest.skip("not a run")
    if config == "own-data.yaml":
        pytest.skip("needs files of one's own: tests/unit/test_docs.py")
    done = run(f"python -m ray_jobs.pipeline configs/{config} --check", timeout_s=30)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^tune +\d+ trials of ", done.stdout, re.M)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("num_steps: 4", "num_stepz: 4"), "training.num_stepz: unknown field; did you mean 'num_steps'?"),
        (('"bundled:prompts"', "absent.jsonl"), "absent.jsonl"),
        (("base: bundled:smollm2-135m-instruct", "base: absent-folder"), "absent-folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    change: tuple[str, str], says: str, run: Run, project: Path
) -> None:
    text = (project / "configs/smoke.yaml").read_text().replace("name: smoke", "name: bad")
    assert change[0] in text
    (project / "bad.yaml").write_text(text.replace(*change))
    done = run("python -m ray_jobs.pipeline bad.yaml", timeout_s=60)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_of(project: Path) -> Path:
    """Beside the folder: what is written while Ray uploads it would change what a job is sent."""
    return project.with_suffix(".log")


@contextmanager
def process(
    line: str, project: Path, environment: dict[str, str], **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process group of its own, ended with all that it started."""
    with (log_of(project)).open("wb") as log:
        started = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=project,
            env={**environment, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            os.killpg(started.pid, signal.SIGINT)
            try:
                started.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)


def wait_until_ready(url: str, started: subprocess.Popen[bytes], log: Path, deadline_s: float = 180) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        assert started.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"not ready within {deadline_s} s: {log.read_text()[-4000:]}")


@contextmanager
def endpoint(project: Path, environment: dict[str, str], tries: int = 3) -> Iterator[None]:
    """The README's endpoint, once it answers. On a very busy machine Ray's node gives up its start."""
    line = "serve run serving.app:app"
    variables = {"SERVING_REGISTRY": "registry", "RAY_ADDRESS": "local"}
    for last in [False] * (tries - 1) + [True]:
        with process(line, project, environment, **variables) as started:
            try:
                wait_until_ready("http://127.0.0.1:8000", started, log_of(project))
            except AssertionError as error:
                if last or "node timed out during startup" not in str(error):
                    raise
                continue
            yield
            return


def test_the_endpoint_serves_the_champion_to_the_openai_client(
    finished: Done, project: Path, environment: dict[str, str]
) -> None:
    champion = json.loads((project / "registry/champion.json").read_bytes())
    with endpoint(project, environment):
        client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
        messages = [{"role": "user", "content": "Write in upper case: green tea"}]
        assert champion["sha256"][:12] in json.dumps([model.to_dict() for model in client.models.list()])
        plain = client.chat.completions.create(
            model="champion", messages=messages, max_tokens=16, temperature=0
        )
        stream = client.chat.completions.create(
            model="champion", messages=messages, max_tokens=16, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert plain.choices[0].message.content == text
        assert plain.usage is not None
        assert plain.usage.prompt_tokens > 10
        (curl,) = (block for block in readme_blocks() if block.startswith("curl"))
        reply = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(reply.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_without_a_champion_serve_says_how_to_get_one(project: Path, run: Run) -> None:
    done = run(
        "timeout 120 serve run serving.app:app", SERVING_REGISTRY="no-such-registry", RAY_ADDRESS="local"
    )
    assert done.returncode != 0
    assert "make run" in done.stdout + done.stderr


def wait_until_answered(
    url: str, started: subprocess.Popen[bytes], log: Path, deadline_s: float = 120
) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        assert started.poll() is None, log.read_text()[-4000:]
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer: {log.read_text()[-4000:]}")


def submit(run: Run, line: str, deadline_s: float = 180, **variables: str) -> Done:
    """A head answers before its agent takes jobs: asks again until it does."""
    end = time.monotonic() + deadline_s
    while True:
        done = run(line, **variables)
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > end:
            return done
        time.sleep(1)


@pytest.mark.parametrize(
    "jobs",
    [
        pytest.param(("pipeline", "judge"), id="the pipeline and a stage"),
        pytest.param(STAGES, id="every stage", marks=pytest.mark.long),
    ],
)
def test_the_pipeline_and_stages_run_as_submitted_jobs(
    finished: Done, project: Path, run: Run, environment: dict[str, str], jobs: tuple[str, ...]
) -> None:
    """The stages are whole, so each job finds nothing to do: what is tested is the way in."""
    port = free_port()
    token = run("ray get-auth-token --generate")
    assert token.returncode == 0, token.stderr
    address = f"http://127.0.0.1:{port + 1}"
    # The agent's own default port may be taken by another cluster of this machine: then it takes no jobs.
    ports = f"--port={port} --dashboard-port={port + 1} --dashboard-agent-listen-port={free_port()}"
    line = f"ray start --head --block --num-cpus=2 {ports} --disable-usage-stats"
    with process(line, project, environment, RAY_AUTH_MODE="token") as started:
        wait_until_answered(address, started, log_of(project))
        for job in jobs:
            done = submit(
                run,
                f"ray job submit --working-dir . -- python -m ray_jobs.{job} configs/smoke.yaml"
                f" --set storage={project}/runs --set registry={project}/registry",
                RAY_API_SERVER_ADDRESS=address,
                RAY_AUTH_MODE="token",
            )
            assert done.returncode == 0, done.stdout + done.stderr
            for stage in STAGES if job == "pipeline" else (job,):
                assert f"{stage:<8} done before, nothing to do" in done.stdout + done.stderr
