"""What an endpoint must stand: overload, clients that go, champions that change or cannot be served."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.endpoint_servers import MAX_TOKENS, NUM_CLIENTS, Server, bodies
from benchmarks.http_load import Sample, percentile, stream_chat
from serving.files import sha256_of
from serving.registry import Registry

_SWAP_CLIENTS = 4
_SWAP_LIMIT_S = 120.0


async def overload(server: Server, peak_tokens_per_s: float, seconds: float) -> dict[str, float]:
    """Open loop: requests arrive at ten times the rate that can be answered, come what may of the others."""
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
        "overload_answered": sum(sample.whole for sample in accepted),
        "overload_refused": len(refused),
        "overload_other": sum(not (sample.whole or sample.status == 429) for sample in samples),
        "rejection_p50_ms": percentile(refused, 0.5) * 1e3,
        "rejection_p99_ms": percentile(refused, 0.99) * 1e3,
    }


async def disconnects(server: Server, count: int) -> dict[str, float]:
    """Streams that their clients tear down, half of them before the first token."""
    releases = []
    for index, body in enumerate(bodies(count)):
        body = {**body, "max_tokens": 512, "logit_bias": {"2": -100}}
        await stream_chat(server.chat, body, stop_after=1 if index % 2 else 4)
        began_s = time.perf_counter()
        while await asyncio.to_thread(_active, server) > 0:
            if time.perf_counter() - began_s > 10:
                break
            await asyncio.sleep(0.005)
        releases.append(time.perf_counter() - began_s)
    leaked = await asyncio.to_thread(_active, server)
    return {"disconnects": count, "leaked_slots": leaked, "release_max_ms": max(releases) * 1e3}


async def swaps(server: Server, registry: Registry, model: Path, count: int) -> dict[str, float]:
    """Champions that change under load. The files differ after the last tensor: in hash, not in answers."""
    gaps: list[float] = []
    async with _asking(server) as samples:
        for number in range(1, count + 1):
            other = registry.root.parent / "other.gguf"
            other.write_bytes(model.read_bytes() + bytes([number % 256]) * number)
            sha256 = await asyncio.to_thread(_promote, registry, other, "swap")
            began_s = time.perf_counter()
            await _until(server, functools.partial(_is, sha256))
            gaps.append(time.perf_counter() - began_s)
    return {
        "swaps": count,
        "swap_requests": len(samples),
        "swap_failed": _num_failed(samples),
        "swap_p50_s": percentile(gaps, 0.5),
        "swap_largest_gap_s": max(sample.largest_gap_s for sample in samples),
    }


async def corrupt_candidates(server: Server, registry: Registry, model: Path, count: int) -> dict[str, float]:
    """Champions that no engine can serve, put into the registry past the command that would refuse them."""
    sha256 = (await asyncio.to_thread(health, server))["model_sha256"]
    num_tried = num_promoted = 0
    async with _asking(server) as samples:
        for data in itertools.islice(corrupted(model.read_bytes()), count):
            other = registry.root.parent / "corrupt.gguf"
            other.write_bytes(data)
            await asyncio.to_thread(_promote, registry, other, "corrupt")
            state = await _until(
                server, lambda state: state["detail"] != "ok" or state["model_sha256"] != sha256
            )
            num_tried, num_promoted = num_tried + 1, num_promoted + (state["model_sha256"] != sha256)
            await asyncio.to_thread(registry.rollback)
            await _until(server, lambda state: state["detail"] == "ok" and state["model_sha256"] == sha256)
    return {
        "corrupt_candidates": num_tried,
        "corrupt_promoted": num_promoted,
        "corrupt_requests": len(samples),
        "corrupt_failed": _num_failed(samples),
    }


def corrupted(good: bytes) -> Iterator[bytes]:
    """Files that are no model any more, in twenty ways for one of llama's architecture."""
    for share in (0.0, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        yield good[: int(share * len(good))]
    for at, data in ((0, b"GGML"), (4, b"\xff"), (8, b"\xff" * 8), (16, b"\xff" * 8), (24, b"\xff" * 8)):
        yield good[:at] + data + good[at + len(data) :]
    names = (
        b"general.architecture",
        b"llama.block_count",
        b"llama.embedding_length",
        b"tokenizer.ggml.tokens",
    )
    for name in (*names, b"token_embd.weight", b"blk.0.attn_q.weight"):
        if name in good:
            yield good.replace(name, name[::-1])
    weights = len(good) // 2
    yield good[:weights] + b"\xff" * (len(good) - weights)  # scales that are no numbers


def health(server: Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/health", timeout=10) as reply:
        return dict(json.load(reply))


@asynccontextmanager
async def _asking(server: Server) -> AsyncIterator[list[Sample]]:
    """A few clients that ask again and again; their samples are complete afterwards."""
    done = asyncio.Event()
    samples: list[Sample] = []

    async def client(body: dict[str, Any]) -> None:
        while not done.is_set():
            samples.append(await stream_chat(server.chat, body))

    clients = [asyncio.ensure_future(client(body)) for body in bodies(_SWAP_CLIENTS)]
    try:
        yield samples
    finally:
        done.set()
        await asyncio.gather(*clients)


def _num_failed(samples: list[Sample]) -> int:
    return sum(sample.status != 200 or not sample.whole for sample in samples)


def _promote(registry: Registry, model: Path, run: str) -> str:
    sha256 = sha256_of(model)
    registry.promote(model, sha256=sha256, run=run, report=registry.root / "report.json")
    return sha256


def _is(sha256: str, state: dict[str, Any]) -> bool:
    return bool(state["model_sha256"] == sha256)


async def _until(server: Server, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    until_s = time.monotonic() + _SWAP_LIMIT_S
    while not condition(state := await asyncio.to_thread(health, server)):
        if time.monotonic() > until_s:
            raise TimeoutError(f"the endpoint's state stays {state}")
        await asyncio.sleep(0.05)
    return state


def _active(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("engine_requests_active{"))
