"""A small HTTP load generator: streaming chat requests over plain sockets, to take little of the machine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_CONTENT = re.compile(rb'"content": ?"[^"]')


@dataclass
class Sample:
    """One request. Seconds from sending it."""

    status: int
    first_token_s: float | None
    seconds: float
    num_tokens: int
    whole: bool
    """The stream ended as it should, with [DONE]."""
    model: str = ""
    error: str = ""
    largest_gap_s: float = 0.0


async def stream_chat(url: str, body: dict[str, Any], *, stop_after: int | None = None) -> Sample:
    """One streaming request; `stop_after` tears the connection down after so many events."""
    began_s = time.perf_counter()
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode() + data)
    try:
        return await _read(reader, began_s, stop_after)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, began_s: float, stop_after: int | None) -> Sample:
    status = int((await reader.readline()).split()[1])
    sample = Sample(status, None, 0.0, 0, False)
    last_s, num_events, num_chunks = began_s, 0, 0
    usage_tokens: int | None = None
    while line := await reader.readline():
        if not line.startswith(b"data: ") and b'"error"' not in line:
            continue
        now_s = time.perf_counter()
        if b"[DONE]" in line:
            sample.whole = True
        elif b'"error"' in line:
            sample.error = line.decode("utf-8", "replace")[:300]
        elif b'"usage":{' in line or b'"usage": {' in line:
            usage_tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        elif _CONTENT.search(line):
            num_chunks += 1
            sample.first_token_s = sample.first_token_s or now_s - began_s
            sample.largest_gap_s = max(sample.largest_gap_s, now_s - last_s)
            last_s = now_s
        if not sample.model and b'"system_fingerprint":"' in line:
            sample.model = json.loads(line[6:])["system_fingerprint"]
        num_events += 1
        if stop_after is not None and num_events >= stop_after:
            break
    sample.seconds = time.perf_counter() - began_s
    # A server that sends no usage sends a chunk a token.
    sample.num_tokens = num_chunks if usage_tokens is None else usage_tokens
    return sample


async def closed_loop(
    url: str, bodies: Sequence[dict[str, Any]], *, num_clients: int
) -> tuple[list[Sample], float]:
    """Every client sends its next request when the last is answered. Returns samples and total seconds."""
    waiting = list(reversed(bodies))
    samples: list[Sample] = []

    async def client() -> None:
        while waiting:
            samples.append(await stream_chat(url, waiting.pop()))

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    return samples, time.perf_counter() - began_s


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
