"""What judging's bookkeeping and the verdict take of the driver: seconds and memory by the number of prompts.

`python -m benchmarks.scale_report [--rows 10000,100000] [--quick] [--json FILE]`

Made-up prompts (60 words), answers (120 words) and scores with reasons (20 words) of two models; the stages
themselves, without engines. Each stage and size in a process of its own.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.scale import peak_rss
from ray_jobs.config import Config, load_config
from ray_jobs.records import Answer, Judgement, Message, Pair, Prompt, as_row, text_sha256
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages import cluster, generate, judge, verdict
from ray_jobs.stages.judge_actor import RESULT_COLUMNS
from ray_jobs.tables import PAIR_COLUMNS, PROMPT_COLUMNS, table_of, write_tables

CONFIG = harness.REPOSITORY / "configs/smoke.yaml"
METRIC = "RESPONSE_CORRECTNESS_5POINT"
MEANS = {"base": 3.0, "candidate": 3.1}
CHUNK = 10_000
STEPS = ("make", "judge", "verdict")


def words(seed: object, count: int) -> str:
    rng = random.Random(str(seed))
    return " ".join(f"word{rng.randrange(500)}" for _ in range(count))


def prompt(number: int) -> Prompt:
    text = words(f"prompt {number}", 60)
    return Prompt(f"p{number:09d}", f"s{number % 5}", (Message("user", text),), words(number, 60))


def answer(number: int, model: str) -> Answer:
    row = prompt(number)
    text = words(f"{model} {number}", 120)
    return Answer(row.id, row.source, row.sha256, model, text, 80, 0, 150, "stop", 0.1)


def tables(rows: Iterator[Any], columns: Mapping[str, str]) -> Iterator[Any]:
    while chunk := [as_row(row) for row in islice(rows, CHUNK)]:
        yield table_of(chunk, columns)


def make(folder: RunFolder, count: int) -> None:
    """A run that is ready to be judged."""
    prompts = tables((prompt(number) for number in range(count)), PROMPT_COLUMNS)
    write_tables(folder.path("data/prompts.parquet"), prompts, PROMPT_COLUMNS)
    pairs = (Pair(f"k{n}", "s", (Message("user", f"pair {n}"),), "right", "wrong") for n in range(40))
    write_tables(folder.path("data/trust.parquet"), tables(pairs, PAIR_COLUMNS), PAIR_COLUMNS)
    folder.write_json("data/report.json", {})
    for model in generate.MODELS:
        folder.write_json(f"models/{model}/manifest.json", {"sha256": model})
        answers = tables((answer(number, model) for number in range(count)), Answer.COLUMNS)
        write_tables(folder.path(generate.ANSWERS.format(model=model)), answers, Answer.COLUMNS)


def judgement(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a judge would say: right answers of known pairs win, models differ by a little."""
    noise = random.Random(f"{row['subject']} {row['id']}").gauss(0, 0.5)
    known = 4.0 if row["answer"] == "right" else 2.0
    score = MEANS[row["subject"]] + noise if row["subject"] in MEANS else known
    whole, reasons = min(5, max(1, round(score))), "because " * 20
    sha256 = text_sha256(row["answer"])
    made = Judgement(row["id"], METRIC, whole, score, reasons, None, sha256, "judge", 0.1)
    return {"subject": row["subject"], **as_row(made)}


def judge_without_engines(config: Config, folder: RunFolder) -> None:
    def judged(_: object, rows: Iterable[Any], unfinished: Path, *__: object) -> Path:
        found = (table_of([judgement(row) for row in table.to_pylist()], RESULT_COLUMNS) for table in rows)
        write_tables(unfinished / "output.parquet", found, RESULT_COLUMNS)
        return unfinished / "output.parquet"

    judge.compute_tables = judged
    cluster.connect = lambda: None
    judge.run(config, folder)


def one(step: str, count: int, storage: str) -> None:
    """Prints seconds and MiB of one stage."""
    changes = [f"storage={storage}", "verdict.when_untrusted=inconclusive"]
    config = load_config(CONFIG, changes)
    folder = open_run(config.storage, config.name)
    with peak_rss() as peak:
        began_s = time.perf_counter()
        match step:
            case "make":
                make(folder, count)
            case "judge":
                judge_without_engines(config, folder)
            case "verdict":
                verdict.run(config, folder)
        seconds = time.perf_counter() - began_s
    print(seconds, peak[0])


def measured(step: str, count: int, storage: str) -> tuple[float, float]:
    line = [sys.executable, "-m", "benchmarks.scale_report", "--one", step, str(count), storage]
    done = subprocess.run(line, cwd=harness.REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    seconds, mib = done.stdout.split()[-2:]
    return float(seconds), float(mib)


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0])
    options.add_argument("--rows", default="", help="numbers of prompts, such as 10000,100000")
    options.add_argument("--one", nargs=3, help="a stage of one size, for this program's own use")
    given = options.parse_args()
    if given.one:
        step, count, storage = given.one
        one(step, int(count), storage)
        return
    counts = [int(text) for text in (given.rows or ("1000" if given.quick else "10000,100000")).split(",")]
    figures = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="report-") as storage:
            for step in STEPS:
                seconds, mib = measured(step, count, storage)
                if step != "make":
                    figures[f"{step}_seconds_{count}"], figures[f"{step}_peak_mib_{count}"] = seconds, mib
    harness.report(figures, {"rows": counts}, given.json)


if __name__ == "__main__":
    main()
