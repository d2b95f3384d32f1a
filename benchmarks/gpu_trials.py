"""What it brings that trials of a search share one GPU: trials an hour, one at a time and several.

    python -m benchmarks.gpu_trials [--at-once 1,4,8] [--trials N] [--steps N] [--json FILE]

The stage `tune` as users run it, with the bundled model and the pairs that benchmarks.orpo_step needs, once
for each number of trials at a time. Needs a CUDA GPU and Ray, no hub. Besides the trials' rate: the most of
the GPU's memory that was taken, what was not given back at the end, and what the best trial learnt.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import harness
from benchmarks.orpo_step import read_pairs
from ray_jobs.config import Config, load_config
from ray_jobs.export.base import default_cache_dir, resolve_base
from ray_jobs.orpo.memory import GIB
from ray_jobs.records import as_row
from ray_jobs.runs import RunFolder
from ray_jobs.stages import cluster, tune
from ray_jobs.stages.base_model import NOTE
from ray_jobs.stages.trial_table import read_trials
from ray_jobs.tables import PAIR_COLUMNS, write_rows

CONFIG = harness.REPOSITORY / "configs/smoke.yaml"
POLL_S = 0.2
DEADLINE_S = 30.0


def main() -> None:
    import torch

    options = harness.parser(__doc__.splitlines()[0])
    options.add_argument("--at-once", default="1,4,8", help="numbers of trials that share the GPU")
    options.add_argument("--trials", type=int, default=8)
    options.add_argument("--steps", type=int, default=60)
    given = options.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; benchmarks.scale times trials that train nothing")
    cluster.connect()
    figures: dict[str, float] = {}
    trials = 2 if given.quick else given.trials
    with tempfile.TemporaryDirectory(prefix="gpu-trials-") as folder:
        for at_once in map(int, given.at_once.split(",")):
            config = config_of(at_once, trials, given.steps)
            for name, value in searched(config, RunFolder(Path(folder, str(at_once)))).items():
                figures[f"{name}_{at_once}_at_once"] = value
    work = {"gpu": torch.cuda.get_device_name(), "trials": trials, "steps": given.steps}
    harness.report(figures, work, given.json)


def config_of(at_once: int, trials: int, steps: int) -> Config:
    changes = [
        f"training.num_steps={steps}",
        "training.pairs_per_step=16",
        "training.max_pair_tokens=1024",
        "training.max_batch_tokens=16384",
        "training.lora.rank=16",
        f"training.eval_every_steps={steps}",
        f"training.checkpoint_every_steps={steps}",
        "training.eval_at_start=true",
        "search.space={learning_rate: {loguniform: [1.0e-4, 1.0e-3]}}",
        "training.beta=1.0",
        f"search.num_trials={trials}",
        f"search.max_concurrent_trials={at_once}",
        f"workers.gpus_per_worker={1 / at_once:.4f}",
        "engine.ahead=false",
    ]
    return load_config(CONFIG, changes)


def searched(config: Config, run: RunFolder) -> dict[str, float]:
    """One search: its rate, its memory, and the best trial's held-out accuracy before and after."""
    import torch

    free = torch.cuda.mem_get_info()[0]
    write_splits(run)
    base = resolve_base(config.model, default_cache_dir())
    run.write_json(NOTE, {"name": base.name, "sha256": base.sha256})
    with least_free() as least:
        began_s = time.perf_counter()
        tune.STAGE.run(config, run)
        seconds = time.perf_counter() - began_s
    done = [trial for trial in read_trials(run.path("tune/trials.parquet")) if trial.status == "done"]
    if len(done) < config.search.num_trials:
        raise SystemExit(f"{len(done)} of {config.search.num_trials} trials were done")
    best = max(done, key=lambda trial: trial.heldout_accuracy or 0.0)
    return {
        "trials_per_hour": 3600 * len(done) / seconds,
        "search_s": seconds,
        "peak_gib": (free - least[0]) / GIB,
        "not_given_back_gib": not_given_back(free) / GIB,
        "accuracy_base": best.curve[0]["heldout_accuracy"],
        "accuracy_best": best.curve[-1]["heldout_accuracy"],
    }


def write_splits(run: RunFolder) -> None:
    """Real pairs to train on, and those of a tenth of the instructions to hold out."""
    pairs = read_pairs()
    instructions = sorted({pair.prompt[-1].content for pair in pairs})
    random.Random(0).shuffle(instructions)
    heldout = set(instructions[: len(instructions) // 10])
    kept = [pair for pair in pairs if pair.prompt[-1].content in heldout]
    train = [pair for pair in pairs if pair.prompt[-1].content not in heldout]
    for name, split in (("heldout", kept), ("train", train)):
        write_rows(run.path(f"data/{name}.parquet"), [as_row(pair) for pair in split], PAIR_COLUMNS)


@contextmanager
def least_free() -> Iterator[list[int]]:
    """The least memory of the GPU that was free while the block ran, in bytes."""
    import torch

    least, end = [torch.cuda.mem_get_info()[0]], threading.Event()

    def watch() -> None:
        while not end.wait(POLL_S):
            least[0] = min(least[0], torch.cuda.mem_get_info()[0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield least
    finally:
        end.set()
        thread.join()


def not_given_back(free: int) -> int:
    """Bytes of the GPU that are not free again some time after the last trial."""
    import torch

    deadline = time.monotonic() + DEADLINE_S
    while (left := free - torch.cuda.mem_get_info()[0]) > 0 and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return max(0, left)


if __name__ == "__main__":
    main()
