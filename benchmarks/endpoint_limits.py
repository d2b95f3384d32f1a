"""What the endpoint stands: `python -m benchmarks.endpoint_limits [--quick]`.

Load held: requests arrive at a fixed rate, come what may of the others; the rate is raised until the 99th
percentile of the first token breaks its limit or a request fails. Bad inputs: requests made out of the
endpoint's own OpenAPI document, and requests with broken bytes, to a real endpoint; each must be refused, by
the right code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import harness
from benchmarks.bad_requests import GOOD, bad_requests, broken_bytes, validator_of
from benchmarks.endpoint_servers import (
    MAX_TOKENS,
    RECIPE,
    Server,
    add_engine_options,
    bodies,
    engine_settings,
    our_endpoint,
)
from benchmarks.http_load import Sample, percentile, stream_chat
from serving.files import sha256_of
from serving.registry import Registry

GROWTH = 1.25
MAX_STEPS = 12
NUM_CLIENTS = 8


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    model = options.model or harness.quantised(RECIPE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry = Registry(folder / "registry")
        registry.promote(model, sha256=sha256_of(model), run="benchmark", report=folder / "report.json")
        limits = {"max_answer_tokens": MAX_TOKENS}
        with our_endpoint(registry, folder, options, limits=limits) as server:
            figures = {} if options.bad_inputs_only else asyncio.run(load_held(server, options))
            figures |= asyncio.run(bad_inputs(server, 200 if options.quick else 1000))
    work = {
        "model": model.name, "max_tokens": MAX_TOKENS, "seconds_a_rate": options.seconds,
        "first_token_limit_s": options.first_token_s, "engine": engine_settings(options),
    }  # fmt: skip
    harness.report(figures, work, options.json)


def _options() -> argparse.Namespace:
    options = harness.parser("Load held and bad inputs")
    options.add_argument("--seconds", type=float, default=0.0, help="at each rate; default: 20, quick 6")
    options.add_argument("--first-token-s", type=float, default=1.0, help="limit of the 99th percentile")
    options.add_argument("--rate", type=float, default=1.0, help="requests a second to begin with")
    options.add_argument("--bad-inputs-only", action="store_true")
    add_engine_options(options)
    found = options.parse_args()
    found.seconds = found.seconds or (6.0 if found.quick else 20.0)
    return found


async def load_held(server: Server, options: argparse.Namespace) -> dict[str, float]:
    """The highest rate at which nothing failed and first tokens came in time."""
    rate, held, first_s = options.rate, 0.0, float("nan")
    before = _engine_mib(server)
    for step in range(MAX_STEPS):
        samples = await _open_loop(server, rate, options.seconds, offset=step)
        late_s = percentile([s.first_token_s for s in samples if s.first_token_s is not None], 0.99)
        whole = all(sample.status == 200 and sample.whole for sample in samples)
        print(
            f"  {rate:.2f}/s  first token p99 {late_s:.2f} s  {'whole' if whole else 'broken'}",
            file=sys.stderr,
        )
        if not whole or late_s > options.first_token_s:
            break
        rate, held, first_s = rate * GROWTH, rate, late_s
    return {
        "load_held_requests_per_s": held,
        "load_held_first_token_p99_ms": first_s * 1e3,
        "engine_rss_growth_mib": _engine_mib(server) - before,
    }


async def _open_loop(server: Server, rate: float, seconds: float, *, offset: int) -> list[Sample]:
    began_s = time.perf_counter()
    asked = []
    for index, body in enumerate(bodies(max(1, int(rate * seconds)), offset=16 * offset)):
        await asyncio.sleep(max(0.0, began_s + index / rate - time.perf_counter()))
        asked.append(asyncio.ensure_future(stream_chat(server.chat, body)))
    return list(await asyncio.gather(*asked))


def _engine_mib(server: Server) -> float:
    """Resident memory of the engine's process."""
    children = psutil.Process(server.pid).children(recursive=True)
    engines = [child for child in children if "ServeReplica:endpoint:engine" in " ".join(child.cmdline())]
    return float(sum(child.memory_info().rss for child in engines)) / (1 << 20)


async def bad_inputs(server: Server, num_broken: int) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.url}/openapi.json") as reply:
        document = json.load(reply)
    cases: list[tuple[str, bytes, bool]] = [
        ("/v1/chat/completions", data, True) for data in broken_bytes(num_broken)
    ]
    for path in GOOD:
        validator = validator_of(document, path)
        cases += [(path, _short(body), validator.is_valid(body)) for body in bad_requests(path, document)]
    statuses: list[tuple[int, bool]] = []
    places = asyncio.Semaphore(NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

        async def ask(path: str, data: bytes, may_pass: bool) -> None:
            async with places:
                reply = await client.post(path, content=data)
            statuses.append((reply.status_code, may_pass))

        await asyncio.gather(*(ask(*case) for case in cases))
        good = await client.post(
            "/v1/chat/completions", json={**GOOD["/v1/chat/completions"], "max_tokens": 4}
        )
    return {
        "bad_inputs": len(cases),
        "bad_inputs_refused": sum(status == 400 for status, _ in statuses),
        "bad_inputs_5xx": sum(status >= 500 for status, _ in statuses),
        "bad_inputs_wrong_code": sum(
            status not in ((200, 400, 404) if may_pass else (400,)) for status, may_pass in statuses
        ),
        "next_good_request_answered": float(good.status_code == 200),
    }


def _short(body: Any) -> bytes:
    """What passes need not write a long answer."""
    if isinstance(body, dict):
        body = {"max_tokens": 2, **body}
    return json.dumps(body).encode()


if __name__ == "__main__":
    main()
