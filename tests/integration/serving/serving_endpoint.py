"""How the tests here start an endpoint, and look at it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from serving.cluster_env import CLUSTER_ENV
from serving.files import sha256_of
from serving.registry import Registry

START_LIMIT_S = 90.0
READ_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Endpoint:
    url: str
    registry: Registry
    model: Path
    process: subprocess.Popen[bytes]

    def variant(self, number: int) -> tuple[Path, str]:
        """The same model under another hash: bytes after the last tensor change nothing."""
        path = self.registry.root.parent / f"variant-{number}.gguf"
        path.write_bytes(self.model.read_bytes() + b"\0" * number)
        return path, sha256_of(path)

    def promote(self, path: Path, sha256: str, run: str = "local") -> None:
        report = self.registry.root.parent / "report.json"
        self.registry.promote(path, sha256=sha256, run=run, report=report)

    def processes(self, name: str) -> list[psutil.Process]:
        """Of this endpoint, by what Ray calls them."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if name in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def engines(self) -> list[psutil.Process]:
        return self.processes("ServeReplica:endpoint:engine")

    def kill_engine(self) -> None:
        """As the kernel would when memory runs out: no goodbye."""
        for engine in self.engines():
            engine.kill()

    def proxy(self) -> psutil.Process:
        """Serve's process that speaks HTTP."""
        return self.processes("ray::ProxyActor")[0]

    def champion(self) -> str:
        return str(httpx.get(f"{self.url}/health", timeout=10).json()["model_sha256"])

    def active(self) -> int:
        """Answers that are being written now."""
        return self.metric("engine_requests_active")

    def metric(self, name: str) -> int:
        """Of all replicas; -1 where no line has this name."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        found = [int(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(found) if found else -1


def serve_config(port: int, registry: Path, args: Mapping[str, Any]) -> dict[str, object]:
    project = Path(__file__).parents[3]
    config: dict[str, object] = yaml.safe_load((project / "configs" / "serve.yaml").read_text())
    engine = {"cores": 1, "pin": False, "slots": 8, "context_tokens": 1024}
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] = {  # type: ignore[index]
        "registry": str(registry),
        "engine": engine,
        "max_queued": 24,
        "watch_s": 0.1,
        "request_timeout_s": 60,
        **args,
    }
    return config


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SERVING_"))}
    return {
        **kept,
        "RAY_ADDRESS": "local",  # or `serve run` joins, or waits for, the cluster that Ray has noted last
        **CLUSTER_ENV,
        "SERVING_READ_TIMEOUT_S": str(READ_TIMEOUT_S),
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_ready(endpoint: Endpoint, log: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s:
        if endpoint.process.poll() is not None:
            break
        try:
            if httpx.get(f"{endpoint.url}/health", timeout=5).status_code == 200:
                return
        except (httpx.HTTPError, json.JSONDecodeError):
            pass
        time.sleep(0.1)
    pytest.fail(f"the endpoint did not start:\n{log.read_text(errors='replace')[-4000:]}")


def poll(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until the condition held."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, "the condition did not come true in time"
        time.sleep(0.02)
    return time.monotonic() - began_s


@contextmanager
def running(
    root: Path, model: Path, *, env: Mapping[str, str] | None = None, **args: Any
) -> Iterator[Endpoint]:
    """An endpoint over a registry of its own. `args`: settings besides those of all tests here."""
    (root / "report.json").write_text("{}")
    port = free_port()
    registry = Registry(root / "registry")
    registry.promote(model, sha256=sha256_of(model), run="local", report=root / "report.json")
    config = root / "serve.yaml"
    config.write_text(yaml.safe_dump(serve_config(port, registry.root, args)))
    with (root / "serve.log").open("wb") as log:
        command = [str(Path(sys.executable).with_name("serve")), "run", str(config)]
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment() | dict(env or {}), cwd=root
        )
    found = Endpoint(f"http://127.0.0.1:{port}", registry, model, process)
    try:
        wait_ready(found, root / "serve.log")
        yield found
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
