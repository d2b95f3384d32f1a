"""What a run would stumble over at its start, found out before anything is started."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_jobs.config import Config
from ray_jobs.data.files import files_of
from ray_jobs.data.settings import Source
from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.records import Prompt

MAX_BYTES_READ = 16_000_000
MAX_BUNDLED_ROWS = 10_000
"""Data sets that are larger are not read for a look."""
MAX_BYTES_COMPARED = 2_000_000
"""In larger ones near duplicates are not looked for: that takes a millisecond a row."""
PACKED = (".gz", ".parquet")
PACKED_TIMES = 5
"""How much larger their rows are, about."""


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
    """What the data sets that are at hand hold for this run.

    Raises DataError as `split` does, and for a row that lacks what a metric needs.
    """
    data, seed = config.data, config.seed
    if at_hand(data.preferences) and at_hand(data.prompts):
        from ray_jobs.data.split import split

        size = sum(size_of(source) for source in (data.preferences, data.prompts))
        compared = data if size <= MAX_BYTES_COMPARED else data.model_copy(update={"near_overlap": "off"})
        splits = split(compared, seed)
        _check_inputs(config, splits.prompts)
        report = splits.report
        yield f"usable: {_usable(report['preferences'], 'pairs')}; {len(splits.train)} to train on"
        left_out = report["overlap"]["dropped_prompts"] + report["near_overlap"]["dropped"]
        near = f"; {left_out} left out that stand (nearly) in the pairs" if left_out else ""
        yield f"usable: {_usable(report['prompts'], 'prompts')}{near}"
        return
    from ray_jobs.data.load import load_pairs, load_prompts
    from ray_jobs.data.report import describe

    if at_hand(data.preferences):
        yield f"usable: {_usable(describe(data.preferences, load_pairs(data.preferences, seed)), 'pairs')}"
    if at_hand(data.prompts):
        prompts = load_prompts(data.prompts, seed)
        _check_inputs(config, prompts.rows)
        yield f"usable: {_usable(describe(data.prompts, prompts), 'prompts')}"


def _check_inputs(config: Config, prompts: Sequence[Prompt]) -> None:
    from ray_jobs.judging.metrics import check_inputs, outlines_of

    for metric in outlines_of(config.judge.metrics):
        check_inputs(metric, prompts, config.judge.inputs)


def _usable(found: Mapping[str, Any], what: str) -> str:
    """`found`: a data set as `describe` tells of it."""
    left_out = dict(found["quarantined"])
    left_out |= {
        "of excluded sources": found["rows_excluded"],
        "not in the sample": found["rows_sampled_out"],
    }
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return f"{found['rows_used']} of {found['rows_in']} {what}" + (f" (not: {reasons})" if reasons else "")


def at_hand(source: Source) -> bool:
    """Whether a data set is on this machine, and small enough to be read for a look."""
    if source.kind == "bundled":
        from ray_jobs.data.bundled.rows import NUM_ROWS

        return NUM_ROWS[source.source] <= MAX_BUNDLED_ROWS
    if source.kind == "hub" or "://" in source.source:
        return False
    return size_of(source) <= MAX_BYTES_READ


def size_of(source: Source) -> int:
    """Bytes of a local data set's rows, about; 0 for bundled ones."""
    if source.kind == "bundled":
        return 0
    return sum(
        path.stat().st_size * (PACKED_TIMES if path.suffix in PACKED else 1)
        for path in files_of(source.source)
    )
