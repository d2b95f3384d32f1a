"""What the machinery costs around an engine and around a trial, and whether it stays flat.

`python -m benchmarks.scale [--rows 1000,10000] [--engines 1,4] [--trials N] [--tune N] [--json FILE]`

Rows go through the same Ray Data path as answers do, with an engine that answers at once: what is left is
overhead. The driver's memory is sampled while they do. Trials go through Ray Tune and Ray Train with a
training that does nothing; `--tune` leaves Ray Train out of them.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import harness
from ray_jobs.config import EngineActors, JobEngineSettings, load_config
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.runs import RunFolder, dump_json
from ray_jobs.stages import cluster, generate, train_worker, tune, tune_trial
from ray_jobs.stages.block_actor import TOKENS
from ray_jobs.stages.engine_rows import compute_file
from ray_jobs.tables import PROMPT_COLUMNS, RowFile, table_of, write_tables
from serving.engine.types import Request, Result

TEXT = "What would happen to the tides if the moon were half as far away? " * 8
CHUNK = 10_000
ROW_S = 0.1
"""What an answer of the steady engine takes: a model's of a few hundred million parameters on one core."""
ROWS_PER_ENGINE = (64, 320)
"""Rows of the shorter and of the longer run whose difference is the rate of many engines."""
HELDOUT = dict.fromkeys(("heldout_accuracy", "heldout_nll", "heldout_loss", "heldout_margin"), 0.5)
CONFIG = harness.REPOSITORY / "configs/smoke.yaml"


class InstantEngine:
    """Answers every request with 64 words at once."""

    def __init__(self) -> None:
        self.chat = self
        self.settings = JobEngineSettings()

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        return list(range(len(messages[0]["content"]) // 4))

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        text = "word " * 64
        return [
            Result(request.id, text, (), "stop", len(request.prompt), 0, 64, 0.0, 0.0) for request in requests
        ]

    def metrics(self) -> SimpleNamespace:
        return SimpleNamespace(**dict.fromkeys(TOKENS, 0))


class InstantActor(generate.AnswerActor):
    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self.engine: Any = InstantEngine()


class SteadyEngine(InstantEngine):
    """Takes `ROW_S` for each answer, one after another, without using a core."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        with self._turn:
            time.sleep(ROW_S * len(requests))
        return super().generate(requests)


class SteadyActor(generate.AnswerActor):
    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self.engine: Any = SteadyEngine()


def instant_training(job: dict[str, Any], settings: Any, reports: Any, resume_from: str | None) -> None:
    del job, resume_from
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_model.safetensors").write_bytes(b"weights")
        reports.add({"step": settings.num_steps, **HELDOUT}, folder)


def instant_train_worker(job: dict[str, Any]) -> None:
    train_worker.resumed(job, instant_training)


def prompt_tables(count: int) -> Iterator[Any]:
    for start in range(0, count, CHUNK):
        rows = [
            {
                "id": f"row-{number:09d}",
                "source": "scale",
                "messages": [{"role": "user", "content": f"{number}: {TEXT}"}],
                "reference": None,
            }
            for number in range(start, min(count, start + CHUNK))
        ]
        yield table_of(rows, PROMPT_COLUMNS)


def rss_mib() -> float:
    """Resident memory of this process (/proc/self/status, VmRSS)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the system tells no VmRSS")


@contextmanager
def peak_rss() -> Iterator[list[float]]:
    """The highest resident memory while the block runs, sampled, in MiB."""
    peak, ended = [rss_mib()], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            peak[0] = max(peak[0], rss_mib())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        ended.set()
        sampler.join()


def answer_rows(
    count: int, folder: Path, pool: EngineActors, actor: type[generate.AnswerActor] = InstantActor
) -> dict[str, float]:
    """Seconds and the driver's peak memory for `count` prompts, actors' start included."""
    from dataclasses import replace

    source, output = folder / f"{count}.parquet", folder / f"{count}-answers.parquet"
    write_tables(source, prompt_tables(count), PROMPT_COLUMNS)
    spec = {
        "model_sha256": "0" * 64,
        "backend": "none",
        "seed": 0,
        "system_prompt": None,
        "sampling": {"max_tokens": 64},
    }
    job = replace(generate.answer_job(spec), actor=actor)
    with peak_rss() as peak:
        began_s = time.perf_counter()
        compute_file(job, source, output, folder / f"{count}-blocks", pool)
        seconds = time.perf_counter() - began_s
    if len(RowFile(output)) != count:
        raise SystemExit(f"{len(RowFile(output))} answers for {count} prompts")
    return {"rows": count, "seconds": seconds, "driver_peak_mib": peak[0]}


def time_rows(counts: Sequence[int], pool: EngineActors, folder: Path) -> dict[str, float]:
    """Overhead from the difference of two sizes, so that the start of the actors is not in it."""
    answer_rows(counts[0], folder / "warm", pool)
    measured = [answer_rows(count, folder, pool) for count in counts]
    figures = {}
    for small, large in pairwise(measured):
        spent = (large["seconds"] - small["seconds"]) * pool.actors
        number = large["rows"] - small["rows"]
        figures[f"overhead_per_row_ms_{int(large['rows'])}"] = 1000 * spent / number
    for one in measured:
        print(f"  {one}", file=sys.stderr, flush=True)
        figures[f"seconds_{int(one['rows'])}"] = one["seconds"]
        figures[f"driver_peak_mib_{int(one['rows'])}"] = one["driver_peak_mib"]
    if len(counts) > 1:
        figures["overhead_per_row_ms"] = figures[f"overhead_per_row_ms_{counts[-1]}"]
    figures["driver_rss_growth_mib"] = measured[-1]["driver_peak_mib"] - measured[0]["driver_peak_mib"]
    return figures


def time_engines(numbers: Sequence[int], folder: Path) -> dict[str, float]:
    """Share of the ideal rate that engines reach together, on simulated cores; their start is not in it."""
    figures = {}
    fewer, more = ROWS_PER_ENGINE
    for number in numbers:
        pool = EngineActors(actors=number, rows_per_block=16, settings=JobEngineSettings(cores=1))
        few, many = (
            answer_rows(number * each, folder / f"engines-{number}-{each}", pool, SteadyActor)["seconds"]
            for each in ROWS_PER_ENGINE
        )
        figures[f"efficiency_{number}_engines"] = (more - fewer) * ROW_S / (many - few)
        print(f"  {number} engines: {few:.1f} and {many:.1f} s", file=sys.stderr, flush=True)
    return figures


def report_at_once(overrides: dict[str, Any], *, job: dict[str, Any], worker: object) -> None:
    """A trial without a worker: what is left is Ray Tune's work, and one process."""
    import ray.tune

    del overrides, worker
    steps = TrainingSettings.model_validate_json(job["training"]).num_steps
    ray.tune.report({"step": steps, **HELDOUT})


def time_trials(count: int, folder: Path, *, workers: bool = True) -> dict[str, float]:
    """Seconds of a trial that trains nothing, four at once: with its worker, or Tune's part alone.

    Of Tune's part also the first and the last tenth, which tell whether it stays flat.
    """
    changes = [f"search.num_trials={count}", "search.max_concurrent_trials=4", "workers.cpus_per_worker=0.5"]
    config = load_config(CONFIG, changes)
    run = RunFolder(folder / ("workers" if workers else "trials"))
    for name in ("train", "heldout"):
        run.write(f"data/{name}.parquet", dump_json([]))
    run.write("data/base.json", dump_json({"sha256": "0" * 64}))
    tune.train_worker = instant_train_worker
    if not workers:
        tune_trial.run_trial = report_at_once
    with peak_rss() as peak:
        began_s = time.perf_counter()
        results = tune.fit(config, tune.trial_job(config, run), run.path("tune"))
        seconds = time.perf_counter() - began_s
    if any(result.error for result in results):
        raise SystemExit(f"a trial failed: {results}")
    if workers:
        return {"overhead_per_trial_s": seconds / count, "trials": count}
    ends_s = sorted(result.metrics["timestamp"] for result in results)
    tenth = max(1, count // 10)
    return {
        "tune_per_trial_s": seconds / count,
        "tune_first_tenth_s": (ends_s[tenth] - ends_s[0]) / tenth,
        "tune_last_tenth_s": (ends_s[-1] - ends_s[-1 - tenth]) / tenth,
        "tune_driver_peak_mib": peak[0],
        "tune_trials": count,
    }


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0])
    options.add_argument("--rows", default="", help="numbers of rows, rising, such as 1000,10000,100000")
    options.add_argument("--trials", type=int, default=None, help="trials that train nothing; 0: none")
    options.add_argument("--tune", type=int, default=0, help="trials without workers, such as 1000")
    options.add_argument("--engines", default="", help="numbers of engines to simulate, such as 1,4,16")
    given = options.parse_args()
    engines = [int(text) for text in given.engines.split(",") if text]
    counts = [
        int(text) for text in (given.rows or ("1000,5000" if given.quick else "1000,10000,100000")).split(",")
    ]
    num_trials = given.trials if given.trials is not None else (4 if given.quick else 16)
    pool = EngineActors(actors=cluster.usable_cpus(), rows_per_block=16, settings=JobEngineSettings(cores=1))
    cluster.connect(cpus_here=max([pool.actors, *engines]))  # as many as the largest simulation has engines
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        figures = time_rows(counts, pool, Path(folder))
        figures |= time_engines(engines, Path(folder))
        if num_trials:
            figures |= time_trials(num_trials, Path(folder))
        if given.tune:
            figures |= time_trials(given.tune, Path(folder), workers=False)
    work = {
        "rows": counts,
        "actors": pool.actors,
        "rows_per_block": pool.rows_per_block,
        "trials": num_trials,
    }
    harness.report(figures, work, given.json)


if __name__ == "__main__":
    from benchmarks import scale

    scale.main()
