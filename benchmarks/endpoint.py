"""The endpoint under load, beside its peers: `python -m benchmarks.endpoint [--quick] [--llama-server PATH]`.

All servers hold the same GGUF and take the same prompts from the same clients on the same machine, in turns,
each alone on it. Then, for the endpoint alone: overload, clients that go away, and champions that change.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from benchmarks import endpoint_faults as faults
from benchmarks import harness
from benchmarks.endpoint_servers import (
    LLAMA_CPP_SERVER,
    LLAMA_SERVER,
    MAX_TOKENS,
    NUM_CLIENTS,
    OPENVINO,
    RECIPE,
    Opener,
    Server,
    add_engine_options,
    bodies,
    engine_settings,
    our_endpoint,
    peers,
)
from benchmarks.http_load import closed_loop, percentile
from serving.engine import Engine, EngineSettings, Request, Sampling
from serving.files import sha256_of
from serving.registry import Registry

_SLOW = 3
"""llama_cpp.server answers one request after another: it gets this part of the requests."""


PARTS = ("load", "overload", "faults")


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry = Registry(folder / "registry")
        registry.promote(model, sha256=sha256_of(model), run="benchmark", report=folder / "report.json")

        def ours(backend: str | None = None) -> AbstractContextManager[Server]:
            return our_endpoint(registry, folder, options, backend=backend)

        others = {} if options.no_peers else peers(model, options)
        if not options.no_peers and options.backend != "openvino" and find_spec("openvino_genai"):
            others[OPENVINO] = partial(ours, "openvino")
        if options.only:
            named = {_key(name): name for name in others}
            if unknown := set(options.only.split(",")) - named.keys():
                raise SystemExit(f"--only {', '.join(sorted(unknown))}: there are {', '.join(named)}")
            others = {named[key]: others[named[key]] for key in options.only.split(",")}
        figures: dict[str, float] = {}
        if "load" in options.parts:
            figures |= compared(compare({"endpoint": ours, **others}, options))
            bare = asyncio.run(bare_engine(model, options))
            figures["tokens_per_s_bare_engine"] = bare
            figures["share_of_engine"] = figures["tokens_per_s_endpoint"] / bare
        if {"overload", "faults"} & {*options.parts}:
            with ours() as server:
                figures |= stands(server, registry, model, options)
    work = {
        "model": model.name, "clients": options.clients, "requests": options.requests,
        "max_tokens": MAX_TOKENS,
        "requests_llama_cpp_server": options.requests // _SLOW, "repeats": options.repeats,
        "servers": ["endpoint", *others], "engine": engine_settings(options),
    }  # fmt: skip
    harness.report(figures, work, options.json)


def _options() -> argparse.Namespace:
    options = harness.parser("The endpoint beside llama_cpp.server and llama-server")
    options.add_argument("--llama-server", type=Path, help="path to llama.cpp's server")
    options.add_argument("--no-peers", action="store_true")
    options.add_argument("--only", help="comma-separated names of peers, such as llama_server")
    options.add_argument("--clients", type=int, default=NUM_CLIENTS, help="fewer leave slots idle")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    options.add_argument("--repeats", type=int, help="rounds; default: 3, quick 1")
    options.add_argument("--requests", type=int, default=64, help="to each server, in each round")
    options.add_argument("--disconnects", type=int, help="streams torn down; default: 200, quick 20")
    options.add_argument("--swaps", type=int, help="champions that change; default: 100, quick 3")
    options.add_argument("--corrupt", type=int, help="corrupt candidates; default: 20, quick 4")
    add_engine_options(options)
    found = options.parse_args()
    short: bool = found.quick
    found.repeats = found.repeats or (1 if short else 3)
    found.overload_s = 8.0 if short else 30.0
    for name, few, many in (("disconnects", 20, 200), ("swaps", 3, 100), ("corrupt", 4, 20)):
        setattr(found, name, getattr(found, name) or (few if short else many))
    return found


def compare(openers: Mapping[str, Opener], options: argparse.Namespace) -> dict[str, list[Load]]:
    """In turns, forwards and backwards, with new prompts for every repeat: none answers out of its cache."""
    rounds: dict[str, list[Load]] = {name: [] for name in openers}
    for turn in range(options.repeats):
        for name in list(openers)[:: 1 if turn % 2 == 0 else -1]:
            with openers[name]() as server:
                asyncio.run(load(server, num_requests=2))  # what a server does only once
                offset = NUM_CLIENTS + turn * options.requests
                count = options.requests // (_SLOW if name == LLAMA_CPP_SERVER else 1)
                clients = options.clients
                one = asyncio.run(load(server, num_requests=count, offset=offset, num_clients=clients))
            rounds[name].append(one)
            print(f"  {name:<18} {one}", file=sys.stderr, flush=True)
    return rounds


async def load(server: Server, *, num_requests: int, offset: int = 0, num_clients: int = NUM_CLIENTS) -> Load:
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


def compared(rounds: Mapping[str, list[Load]]) -> dict[str, float]:
    """Medians of the rounds, and of the endpoint's ratios to the others within each round.

    `ttft_p50_ratio` and `ttft_p99_ratio` are those to the faster peer: llama-server, if it took part.
    """
    figures: dict[str, float] = {}
    ours = rounds["endpoint"]
    for name, theirs in rounds.items():
        key = _key(name)
        figures[f"tokens_per_s_{key}"] = statistics.median(one.tokens_per_s for one in theirs)
        figures[f"ttft_p50_ms_{key}"] = statistics.median(one.first_token_p50_s * 1e3 for one in theirs)
        figures[f"ttft_p99_ms_{key}"] = statistics.median(one.first_token_p99_s * 1e3 for one in theirs)
        figures[f"broken_{key}"] = sum(one.num_broken for one in theirs)
        if name != "endpoint":
            figures[f"throughput_vs_{key}"] = _ratio(ours, theirs, lambda one: one.tokens_per_s)
            figures[f"ttft_p50_ratio_vs_{key}"] = _ratio(ours, theirs, lambda one: one.first_token_p50_s)
            figures[f"ttft_p99_ratio_vs_{key}"] = _ratio(ours, theirs, lambda one: one.first_token_p99_s)
    chosen = next((name for name in (LLAMA_SERVER, LLAMA_CPP_SERVER) if name in rounds), None)
    if chosen is not None:
        for share in ("p50", "p99"):
            figures[f"ttft_{share}_ratio"] = figures[f"ttft_{share}_ratio_vs_{_key(chosen)}"]
    if {OPENVINO, LLAMA_SERVER} <= rounds.keys():
        both = rounds[OPENVINO], rounds[LLAMA_SERVER]
        figures["throughput_openvino_vs_llama_server"] = _ratio(*both, lambda one: one.tokens_per_s)
    return figures


def _ratio(ours: list[Load], theirs: list[Load], value: Callable[[Load], float]) -> float:
    return statistics.median(value(one) / value(other) for one, other in zip(ours, theirs, strict=True))


def _key(name: str) -> str:
    return name.replace(", ", "_").replace(".", "_").replace("-", "_")


async def bare_engine(model: Path, options: argparse.Namespace) -> float:
    """Tokens per second of the engine alone, in this process, with as many clients: Serve's limit."""
    with Engine.open(model, EngineSettings.model_validate(engine_settings(options))) as engine:
        waiting = bodies(options.requests, offset=NUM_CLIENTS)
        num_tokens = 0

        async def client() -> None:
            nonlocal num_tokens
            while waiting:
                prompt = engine.chat.render(waiting.pop()["messages"])
                stream = engine.submit(Request("bare", prompt, Sampling(max_tokens=MAX_TOKENS)))
                result = await stream.result_async()
                num_tokens += result.num_answer_tokens

        began_s = perf_counter()
        await asyncio.gather(*(client() for _ in range(options.clients)))
        return num_tokens / (perf_counter() - began_s)


def stands(server: Server, registry: Registry, model: Path, options: argparse.Namespace) -> dict[str, float]:
    """The endpoint alone: what it must stand besides load."""
    figures: dict[str, float] = {}
    asyncio.run(load(server, num_requests=2))
    if "overload" in options.parts:
        alone = asyncio.run(load(server, num_clients=1, num_requests=6))
        figures["tokens_per_s_1_client"] = alone.tokens_per_s
        figures["ttft_p50_ms_1_client"] = alone.first_token_p50_s * 1e3
        peak = asyncio.run(load(server, num_requests=options.requests, offset=6)).tokens_per_s
        figures |= asyncio.run(faults.overload(server, peak, options.overload_s))
    if "faults" in options.parts:
        figures |= asyncio.run(faults.disconnects(server, options.disconnects))
        figures |= asyncio.run(faults.swaps(server, registry, model, options.swaps))
        figures |= asyncio.run(faults.corrupt_candidates(server, registry, model, options.corrupt))
    return figures


if __name__ == "__main__":
    main()
