"""The endpoint and its peers as processes, each with its best settings for many clients."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from benchmarks import harness
from serving.cluster_env import CLUSTER_ENV
from serving.registry import Registry

RECIPE = "q4_0"
NUM_CLIENTS = 16
MAX_TOKENS = 96
MAX_QUEUED = 16
START_LIMIT_S = 120.0
LLAMA_CPP_SERVER = "llama_cpp.server"
LLAMA_SERVER = "llama-server"
OPENVINO = "endpoint, openvino"


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    name: str
    url: str
    """Of its root."""
    pid: int

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"


Opener = Callable[[], AbstractContextManager[Server]]


def add_engine_options(options: argparse.ArgumentParser) -> None:
    """How the endpoint's engine is run."""
    options.add_argument("--model", type=Path, help=f"a GGUF; default: the bundled model in {RECIPE}")
    options.add_argument("--backend", choices=("llama_cpp", "openvino"), default="llama_cpp")
    options.add_argument("--lanes", type=int, default=1, help="default: one over all cores")
    options.add_argument("--slots", type=int, default=NUM_CLIENTS, help="per lane")
    options.add_argument("--kv-type", choices=("auto", "f16", "bf16", "q8_0"), default="auto")
    options.add_argument("--flash-attention", choices=("auto", "on", "off"), default="auto")
    options.add_argument("--context", type=int, default=1024, help="tokens of a prompt and its answer")
    options.add_argument("--port", type=int, default=0)


def engine_settings(options: argparse.Namespace, backend: str | None = None) -> dict[str, Any]:
    """`backend`: another one than the options'."""
    fused: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
    return {
        "backend": backend or options.backend,
        "cores": num_cores(), "lanes": options.lanes, "slots": options.slots,
        "context_tokens": options.context, "kv_type": options.kv_type,
        "flash_attention": fused[options.flash_attention],
    }  # fmt: skip


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bodies(count: int, *, offset: int = 0) -> list[dict[str, Any]]:
    """Real questions, answered greedily."""
    return [
        {
            "model": "champion",
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        for text in harness.questions(count, offset)
    ]


@contextmanager
def our_endpoint(
    registry: Registry,
    folder: Path,
    options: argparse.Namespace,
    *,
    backend: str | None = None,
    **args: Any,
) -> Iterator[Server]:
    """`backend`: another one than the options'; `args`: settings of the endpoint besides the benchmark's."""
    port = options.port or _free_port()
    config = yaml.safe_load((harness.REPOSITORY / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port
    config["applications"][0]["args"] = {
        "registry": str(registry.root), "engine": engine_settings(options, backend), "max_queued": MAX_QUEUED,
        "watch_s": 0.2, **args,
    }  # fmt: skip
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("serve")), "run", str(path)]
    gate = {
        **CLUSTER_ENV,
        "RAY_ADDRESS": "local",
        "SERVING_MAX_INSIDE": str(options.lanes * options.slots + MAX_QUEUED),
    }
    url = f"http://127.0.0.1:{port}"
    with _running(command, f"{url}/health", folder / "endpoint.log", gate) as pid:
        yield Server("endpoint", url, pid)


def peers(model: Path, options: argparse.Namespace) -> dict[str, Opener]:
    """The peers that are installed."""
    found: dict[str, Opener] = {}
    threads, tokens = str(num_cores()), str(options.context)
    if find_spec("sse_starlette") is not None and find_spec("starlette_context") is not None:
        command = [
            sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", tokens,
            "--n_threads", threads, "--n_threads_batch", threads,
            "--interrupt_requests", "False",  # or a request that comes cuts off the stream that runs
        ]  # fmt: skip
        found[LLAMA_CPP_SERVER] = lambda: _peer(LLAMA_CPP_SERVER, command)
    if options.llama_server is not None:
        native = [
            str(options.llama_server), "-m", str(model), "-np", str(NUM_CLIENTS),
            "-c", str(options.context * NUM_CLIENTS), "-t", threads, "-fa", "on",
        ]  # fmt: skip
        found[LLAMA_SERVER] = lambda: _peer(LLAMA_SERVER, native)
    return found


@contextmanager
def _peer(name: str, command: list[str]) -> Iterator[Server]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as folder,
        _running([*command, "--port", str(port)], f"{url}/v1/models", Path(folder) / "log", {}) as pid,
    ):
        yield Server(name, url, pid)


@contextmanager
def _running(command: list[str], probe: str, log: Path, environment: Mapping[str, str]) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        until_s = time.monotonic() + START_LIMIT_S
        while not _answers(probe):
            if process.poll() is not None or time.monotonic() > until_s:
                sys.exit(f"{command[:3]} does not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
