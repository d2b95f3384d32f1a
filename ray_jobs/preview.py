"""What a run would stumble over at its start, found out before anything is started."""

from collections.abc import Iterator, Mapping
from typing import Any

from ray_jobs.config import Config
from ray_jobs.data.files import files_of
from ray_jobs.data.settings import Source
from ray_jobs.errors import ConfigError, ModelError

MAX_BYTES_READ = 64_000_000
"""Data sets that are larger are not read for a look."""


def check_named_files(config: Config) -> None:
    """Raises ConfigError or ModelError for metrics, judges, adapters and templates that are not there."""
    from ray_jobs.export.base import check_gguf_named
    from ray_jobs.judging.adapter import adapter_path

    check_metrics(config)
    judge = config.judge
    named = {"model.gguf": config.model.gguf}
    if judge.backend == "engine" and judge.model != "run:base":
        named["judge.model"] = judge.model
    for field, spec in named.items():
        if spec is not None:
            try:
                check_gguf_named(spec)
            except ModelError as error:
                raise ModelError(f"{field}: {error}") from error
    if judge.adapter is not None:
        adapter_path(judge.adapter)


def check_metrics(config: Config) -> None:
    from ray_jobs.judging.metrics import outlines_of

    keys = [metric.key for metric in outlines_of(config.judge.metrics)]
    for name in config.verdict.metrics:
        if name not in keys:
            raise ConfigError(f"verdict.metrics: {name!r} is not judged; judged: {', '.join(keys)}")


def data_lines(config: Config) -> Iterator[str]:
    """What the data sets hold for this run, where both are at hand.

    Raises DataError as `split` does, and for a row that lacks what a metric needs.
    """
    if not all(map(at_hand, (config.data.preferences, config.data.prompts))):
        return
    from ray_jobs.data.split import split
    from ray_jobs.judging.metrics import check_inputs, outline_of

    splits = split(config.data, config.seed)
    for path in config.judge.metrics:
        check_inputs(outline_of(path), splits.prompts, config.judge.inputs)
    report = splits.report
    yield f"usable: {_usable(report['preferences'], 'pairs')}, {len(splits.train)} of them to train on"
    left_out = report["overlap"]["dropped_prompts"] + report["near_overlap"]["dropped"]
    near = f", {left_out} left out that stand (nearly) in the pairs" if left_out else ""
    yield f"usable: {_usable(report['prompts'], 'prompts')}{near}"


def _usable(found: Mapping[str, Any], what: str) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in found["quarantined"].items())
    return f"{found['rows_used']} of {found['rows_in']} {what}" + (f" (not: {reasons})" if reasons else "")


def at_hand(source: Source) -> bool:
    """Whether a data set is on this machine, and small enough to be read for a look."""
    if source.kind == "bundled":
        return True
    if source.kind == "hub" or "://" in source.source:
        return False
    return sum(path.stat().st_size for path in files_of(source.source)) <= MAX_BYTES_READ
