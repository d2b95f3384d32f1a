"""The endpoint under load, beside its peers: `python -m benchmarks.endpoint [--quick] [--llama-server PATH]`.

All servers hold the same GGUF, take the same prompts from the same clients on the same machine, and are
measured in turns. Then, for the endpoint alone: overload, clients that go away, and champions that change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import harness
from benchmarks.http_load import Sample, closed_loop, percentile, stream_chat
from serving.engine import Engine, EngineSettings, Request, Sampling
from serving.files import sha256_of
from serving.registry import Registry

RECIPE = "q4_0"
NUM_CLIENTS = 16
MAX_TOKENS = 96
MAX_QUEUED = 16
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    name: str
    url: str
    """Of its root."""

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"


@dataclass(frozen=True)
class Load:
    """What one closed loop has measured."""

    tokens_per_s: float
    first_token_p50_s: float
    first_token_p99_s: float
    num_broken: int


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the servers would outlive this process
    options = _options()
    model = options.model or harness.quantised(RECIPE)
    sizes = (64, 1, 20, 3) if options.quick else (96, 3, 200, 100)
    num_requests, repeats, num_disconnects, num_swaps = sizes
    num_disconnects, num_swaps = options.disconnects or num_disconnects, options.swaps or num_swaps
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        registry = Registry(folder / "registry")
        registry.promote(model, sha256=sha256_of(model), run="benchmark", report=folder / "report.json")
        ours = stack.enter_context(our_endpoint(registry, folder, options))
        servers = [ours, *(stack.enter_context(peer) for peer in peers(model, options))]
        rounds = compare(servers, num_requests, repeats)
        figures = compared(rounds)
        alone = asyncio.run(load(ours, num_clients=1, num_requests=6))
        figures["tokens_per_s_1_client"] = alone.tokens_per_s
        figures["ttft_p50_ms_1_client"] = alone.first_token_p50_s * 1e3
        if not options.load_only:
            figures |= asyncio.run(overload(ours, figures["tokens_per_s_endpoint"], options))
            figures |= asyncio.run(disconnects(ours, num_disconnects))
            figures |= asyncio.run(swaps(ours, registry, model, num_swaps))
    bare = asyncio.run(bare_engine(model, num_requests, options))
    figures |= {"tokens_per_s_bare_engine": bare, "share_of_engine": figures["tokens_per_s_endpoint"] / bare}
    work = {
        "model": model.name, "clients": NUM_CLIENTS, "requests": num_requests, "max_tokens": MAX_TOKENS,
        "repeats": repeats, "servers": [server.name for server in servers], "disconnects": num_disconnects,
        "swaps": num_swaps, "lanes": options.lanes, "slots": options.slots,
    }  # fmt: skip
    harness.report(figures, work, options.json)


def _options() -> argparse.Namespace:
    options = harness.parser("The endpoint beside llama_cpp.server and llama-server")
    options.add_argument("--llama-server", type=Path, help="path to llama.cpp's server")
    options.add_argument("--model", type=Path, help=f"a GGUF; default: the bundled model in {RECIPE}")
    options.add_argument("--no-peers", action="store_true")
    options.add_argument("--load-only", action="store_true", help="no overload, disconnects and swaps")
    options.add_argument("--disconnects", type=int, help="streams that are torn down")
    options.add_argument("--swaps", type=int, help="champions that change")
    options.add_argument("--lanes", type=int, default=num_cores())
    options.add_argument("--slots", type=int, default=8, help="per lane")
    options.add_argument("--port", type=int, default=0)
    return options.parse_args()


# Servers.


@contextmanager
def our_endpoint(
    registry: Registry, folder: Path, options: argparse.Namespace, **args: Any
) -> Iterator[Server]:
    """`args`: settings of the endpoint besides those of the benchmark."""
    port = options.port or _free_port()
    config = yaml.safe_load((harness.REPOSITORY / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port
    config["applications"][0]["args"] = {
        "registry": str(registry.root), "engine": engine_settings(options), "max_queued": MAX_QUEUED,
        "watch_s": 0.2, **args,
    }  # fmt: skip
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("serve")), "run", str(path)]
    gate = {
        "RAY_ADDRESS": "local",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.gate:proxy_middlewares",
        "SERVING_MAX_INSIDE": str(options.lanes * options.slots + MAX_QUEUED),
    }
    server = Server("endpoint", f"http://127.0.0.1:{port}")
    with _running(command, f"{server.url}/health", folder / "endpoint.log", gate):
        yield server


def peers(model: Path, options: argparse.Namespace) -> Iterator[Any]:
    """The peers that are installed, each with its best settings for many clients."""
    if options.no_peers:
        return
    threads = str(num_cores())
    if shutil.which("uvicorn", path=str(Path(sys.executable).parent)) and _has("sse_starlette"):
        port = _free_port()
        yield _peer(
            "llama_cpp.server",
            port,
            [
                sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port),
                "--n_ctx", "2048", "--n_threads", threads, "--n_threads_batch", threads,
                "--interrupt_requests", "False",
            ],
        )  # fmt: skip
    if options.llama_server is not None:
        port = _free_port()
        yield _peer(
            "llama-server",
            port,
            [
                str(options.llama_server), "-m", str(model), "--port", str(port), "-np", str(NUM_CLIENTS),
                "-c", str(2048 * NUM_CLIENTS), "-t", threads, "-fa", "on",
            ],
        )  # fmt: skip


@contextmanager
def _peer(name: str, port: int, command: list[str]) -> Iterator[Server]:
    server = Server(name, f"http://127.0.0.1:{port}")
    probe = f"{server.url}/v1/models"
    with tempfile.TemporaryDirectory() as folder, _running(command, probe, Path(folder) / "log", {}):
        yield server


@contextmanager
def _running(command: list[str], probe: str, log: Path, environment: dict[str, str]) -> Iterator[None]:
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
        yield
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


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def engine_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"cores": num_cores(), "lanes": options.lanes, "slots": options.slots, "context_tokens": 2048}


# Load.


def bodies(count: int, *, offset: int = 0) -> list[dict[str, Any]]:
    """Real questions, answered greedily."""
    texts = harness.questions(count + offset)[offset:]
    return [
        {
            "model": "champion",
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        for text in texts
    ]


async def load(server: Server, *, num_clients: int, num_requests: int, offset: int = 0) -> Load:
    samples, seconds = await closed_loop(
        server.chat, bodies(num_requests, offset=offset), num_clients=num_clients
    )
    firsts = [sample.first_token_s for sample in samples if sample.first_token_s is not None]
    return Load(
        tokens_per_s=sum(sample.num_tokens for sample in samples) / seconds,
        first_token_p50_s=percentile(firsts, 0.5),
        first_token_p99_s=percentile(firsts, 0.99),
        num_broken=sum(not sample.whole for sample in samples),
    )


def compare(servers: Sequence[Server], num_requests: int, repeats: int) -> dict[str, list[Load]]:
    """In turns, forwards and backwards, with new prompts for every repeat: none answers out of its cache."""
    rounds: dict[str, list[Load]] = {server.name: [] for server in servers}
    for turn in range(repeats):
        for server in servers if turn % 2 == 0 else reversed(servers):
            offset = NUM_CLIENTS + turn * num_requests
            one = asyncio.run(load(server, num_clients=NUM_CLIENTS, num_requests=num_requests, offset=offset))
            rounds[server.name].append(one)
            print(f"  {server.name:<18} {one}", file=sys.stderr, flush=True)
    return rounds


def compared(rounds: dict[str, list[Load]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, loads in rounds.items():
        key = name.replace(".", "_").replace("-", "_")
        figures[f"tokens_per_s_{key}"] = statistics.median(one.tokens_per_s for one in loads)
        figures[f"ttft_p50_ms_{key}"] = statistics.median(one.first_token_p50_s * 1e3 for one in loads)
        figures[f"ttft_p99_ms_{key}"] = statistics.median(one.first_token_p99_s * 1e3 for one in loads)
        figures[f"broken_{key}"] = sum(one.num_broken for one in loads)
        if name != "endpoint":
            pairs = list(zip(rounds["endpoint"], loads, strict=True))
            ratio = statistics.median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs)
            figures[f"throughput_vs_{key}"] = ratio
            for share in ("p50", "p99"):
                field = f"first_token_{share}_s"
                figures[f"ttft_{share}_ratio"] = statistics.median(
                    getattr(ours, field) / getattr(theirs, field) for ours, theirs in pairs
                )
    return figures


async def bare_engine(model: Path, num_requests: int, options: argparse.Namespace) -> float:
    """Tokens per second of the engine alone, in this process, with as many clients: Serve's limit."""
    with Engine.open(model, EngineSettings.model_validate(engine_settings(options))) as engine:
        waiting = bodies(num_requests, offset=NUM_CLIENTS)
        num_tokens = 0

        async def client() -> None:
            nonlocal num_tokens
            while waiting:
                prompt = engine.chat.render(waiting.pop()["messages"])
                stream = engine.submit(Request("bare", prompt, Sampling(max_tokens=MAX_TOKENS)))
                result = await stream.result_async()
                num_tokens += result.num_answer_tokens

        began_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
        return num_tokens / (time.perf_counter() - began_s)


# What else it must stand.


async def overload(server: Server, peak_tokens_per_s: float, options: argparse.Namespace) -> dict[str, float]:
    """Open loop: requests arrive at ten times the rate that can be answered, come what may of the others."""
    seconds = 8 if options.quick else 30
    rate = 10 * peak_tokens_per_s / MAX_TOKENS
    began_s = time.perf_counter()
    asked = []
    for index, body in enumerate(bodies(int(rate * seconds), offset=NUM_CLIENTS)):
        await asyncio.sleep(max(0.0, began_s + index / rate - time.perf_counter()))
        asked.append(asyncio.ensure_future(stream_chat(server.chat, body)))
    samples = await asyncio.gather(*asked)
    accepted = [sample for sample in samples if sample.status == 200]
    refused = [sample.seconds for sample in samples if sample.status == 429]
    goodput = sum(sample.num_tokens for sample in accepted if sample.whole) / (time.perf_counter() - began_s)
    return {
        "overload_arrivals_per_s": rate,
        "overload_goodput_share": goodput / peak_tokens_per_s,
        "overload_answered": len(accepted),
        "overload_refused": len(refused),
        "overload_other_status": len(samples) - len(accepted) - len(refused),
        "rejection_p50_ms": percentile(refused, 0.5) * 1e3,
        "rejection_p99_ms": percentile(refused, 0.99) * 1e3,
    }


async def disconnects(server: Server, count: int) -> dict[str, float]:
    """Streams that their clients tear down, half of them before the first token."""
    releases = []
    for index, body in enumerate(bodies(count)):
        body = {**body, "max_tokens": 1024, "logit_bias": {"2": -100}}
        await stream_chat(server.chat, body, stop_after=1 if index % 2 else 4)
        began_s = time.perf_counter()
        while await asyncio.to_thread(_active, server) > 0:
            if time.perf_counter() - began_s > 10:
                break
            await asyncio.sleep(0.005)
        releases.append(time.perf_counter() - began_s)
    leaked = await asyncio.to_thread(_active, server)
    return {"leaked_slots": leaked, "release_max_ms": max(releases) * 1e3, "disconnects": count}


async def swaps(server: Server, registry: Registry, model: Path, count: int) -> dict[str, float]:
    """Champions that change under load. The files differ after the last tensor: in hash, not in answers."""
    done = asyncio.Event()
    samples: list[Sample] = []
    gaps: list[float] = []

    async def client(body: dict[str, Any]) -> None:
        while not done.is_set():
            samples.append(await stream_chat(server.chat, body))

    clients = [asyncio.ensure_future(client(body)) for body in bodies(4)]
    for number in range(1, count + 1):
        other = registry.root.parent / "other.gguf"
        other.write_bytes(model.read_bytes() + bytes([number % 256]) * number)
        sha256 = await asyncio.to_thread(sha256_of, other)
        began_s = time.perf_counter()
        report = registry.root / "report.json"
        await asyncio.to_thread(registry.promote, other, sha256=sha256, run="swap", report=report)
        while await asyncio.to_thread(_champion, server) != sha256:
            await asyncio.sleep(0.02)
        gaps.append(time.perf_counter() - began_s)
    done.set()
    await asyncio.gather(*clients)
    return {
        "swaps": count,
        "swap_requests": len(samples),
        "swap_failed": sum(sample.status != 200 or not sample.whole for sample in samples),
        "swap_p50_s": percentile(gaps, 0.5),
        "swap_largest_gap_s": max(sample.largest_gap_s for sample in samples),
    }


def _active(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("engine_requests_active ")))


def _champion(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/health", timeout=10) as reply:
        return str(json.load(reply)["model_sha256"])


if __name__ == "__main__":
    main()
