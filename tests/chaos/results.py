"""What a finished pipeline left, without what may differ between two: times."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_jobs.runs import RunFolder
from ray_jobs.stages import generate, judge
from ray_jobs.stages.trial_table import read_trials
from ray_jobs.tables import read_rows

TIMES = {"seconds", "timings_s", "tokens_per_s", "decided_at", "num_cached_tokens", "peak_memory_bytes"}


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def results(root: Path) -> dict[str, Any]:
    run = RunFolder(root)
    answers = {model: read_rows(run.path(generate.ANSWERS.format(model=model))) for model in generate.MODELS}
    judgements = {
        name: read_rows(run.path(judge.JUDGEMENTS.format(subject=name))) for name in judge.subjects(run)
    }
    found: dict[str, Any] = timeless(
        {
            "answers": answers,
            "judgements": judgements,
            "trials": [
                vars(trial) | {"checkpoint": None} for trial in read_trials(run.path("tune/trials.parquet"))
            ],
            "report": json.loads(run.path("report/report.json").read_bytes()),
        }
    )
    return found


def ids(rows: dict[str, list[dict[str, Any]]]) -> Counter[tuple[str, str]]:
    return Counter((name, row["id"]) for name, part in rows.items() for row in part)


def compare(expected: Path, found: Path) -> list[str]:
    """What differs between two finished runs: nothing, if nothing was lost, doubled or changed."""
    one, two = results(expected), results(found)
    differences = []
    for name in ("answers", "judgements"):
        lost, doubled = ids(one[name]) - ids(two[name]), ids(two[name]) - ids(one[name])
        if lost or doubled:
            differences.append(
                f"{found.parent.name}: {name}: {lost.total()} lost, {doubled.total()} too many"
            )
    differences += [f"{found.parent.name}: {text}" for text in list(unequal(one, two))[:20]]
    return differences + [f"{found.parent.name}: {text}" for text in trained_again(found / "chaos")]


def unequal(one: Any, two: Any, where: str = "") -> Iterator[str]:
    """The places in which two nested values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            yield from unequal(one.get(key), two.get(key), f"{where}.{key}" if where else key)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from unequal(left, right, f"{where}[{number}]")
    elif one != two:
        yield f"{where}: {str(one)[:200]} became {str(two)[:200]}"


def trained_again(logs: Path) -> list[str]:
    """Trials of which a step was computed after the last one had been reported."""
    texts = {log.name: log.read_text() for log in logs.glob("*.log")}
    return [f"trial {name} was trained again" for name, text in texts.items() if "finished\nstep" in text]
