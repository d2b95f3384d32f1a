"""Shadow answers judged: `python -m ray_jobs.shadow CONFIG --run RUN_DIR --set name=shadow`.

The endpoint stores answers of a second model beside the champion's. They become a run folder of their own,
the champion's as the base's and the other's as the candidate's, and the judge stage reads it like any other.
`--run`: the finished run whose known pairs the judge is tested on, and whose base may be the judge.
"""

import argparse
import logging
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.command import end, write_config
from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError, StageFailed, UserError
from ray_jobs.logs import configure
from ray_jobs.runs import RunFolder, open_run

log = logging.getLogger(__name__)

NAMES = {"base": "champion", "candidate": "shadow"}
"""The models of the run folder, and what they were to the endpoint."""


def write_inputs(rows: Sequence[dict[str, Any]], folder: RunFolder, run: Path) -> None:
    """What the judge stage reads. Raises ConfigError when `run` lacks it."""
    from ray_jobs.records import Answer
    from ray_jobs.stages.generate import ANSWERS
    from ray_jobs.tables import PROMPT_COLUMNS, write_rows

    for part in ("data", "models/base", *(f"answers/{model}" for model in NAMES)):
        folder.path(part).mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(run / "data" / "trust.parquet", folder.path("data/trust.parquet"))
    except OSError as error:
        raise ConfigError(f"--run: {run / 'data' / 'trust.parquet'}: {error.strerror}") from error
    base, target = run / "models" / "base" / "model.gguf", folder.path("models/base/model.gguf")
    if base.is_file() and not target.exists():
        _link(base, target)
    write_rows(folder.path("data/prompts.parquet"), rows, PROMPT_COLUMNS)
    for model, name in NAMES.items():
        answers = [row["answers"][name] for row in rows]
        write_rows(folder.path(ANSWERS.format(model=model)), answers, Answer.COLUMNS)


def compared(folder: RunFolder) -> list[str]:
    """A line for each metric: mean scores, and on how many prompts which model was better."""
    from ray_jobs.stages.judge import iter_judgements

    scores: dict[str, dict[str, dict[str, float]]] = {}
    for model in NAMES:
        for each in iter_judgements(folder, model):
            if each.score is not None:
                scores.setdefault(each.metric, {}).setdefault(each.id, {})[model] = each.score
    return [_line(metric, list(by_id.values())) for metric, by_id in sorted(scores.items())]


def _line(metric: str, pairs: list[dict[str, float]]) -> str:
    both = [(pair["base"], pair["candidate"]) for pair in pairs if len(pair) == len(NAMES)]
    if not both:
        return f"{metric}: no prompt has a score for both"
    champion, shadow = (statistics.fmean(column) for column in zip(*both, strict=True))
    better, worse = sum(b > a for a, b in both), sum(b < a for a, b in both)
    return (
        f"{metric}: champion {champion:.2f}, shadow {shadow:.2f} on {len(both)} prompts; "
        f"shadow better on {better}, worse on {worse}"
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def run(config: Config, finished: Path) -> list[str]:
    """Judges all stored answers anew, and gives the comparison."""
    from ray_jobs.locks import owned
    from ray_jobs.stages import judge
    from ray_jobs.stages.base import forget, run_stage
    from serving.registry import Registry

    stored = Registry.at(config.registry).shadow_rows()
    if not stored:
        raise ConfigError(f"registry: {config.registry}/shadow: no answers are stored there")
    rows = latest_pair(stored)
    if len(rows) < len(stored):
        log.info(
            "shadow   %d answers of other models than the latest two are left out", len(stored) - len(rows)
        )
    folder = open_run(config.storage, config.name)
    if folder.root == finished.resolve():
        raise ConfigError(f"name: {config.name!r} is the finished run itself; take another with --set name=…")
    with owned(folder.root):
        write_config(config, folder)
        forget([judge.STAGE], folder)
        write_inputs(rows, folder, finished)
        run_stage(judge.STAGE, config, folder)
    champion, shadow = models_of(rows[-1])
    return [f"champion {champion:.12}, shadow {shadow:.12}", *compared(folder)]


def models_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """The sha256 of the champion and of the shadow that have answered."""
    champion, shadow = (str(row["answers"][name]["model_sha256"]) for name in NAMES.values())
    return champion, shadow


def latest_pair(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the two models that have answered last: a champion that became the shadow is another."""
    latest = models_of(max(rows, key=lambda row: float(row.get("asked_s", 0))))
    return [row for row in rows if models_of(row) == latest]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.shadow", description="Judges the endpoint's shadow answers."
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)
    configure(False)
    try:
        config = load_config(options.config, [*options.changes, "verdict.sequential.looks=[1.0]"])
        lines = run(config, options.run)
    except (UserError, StageFailed) as error:
        return end(str(error), error.exit_code)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
