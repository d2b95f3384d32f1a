"""What a run would stumble over at its start, found out before anything is started."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ray_jobs.config import Config
from ray_jobs.data.files import files_of, is_document
from ray_jobs.data.settings import Source
from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.records import Prompt

MAX_BYTES_READ = 16_000_000
MAX_BUNDLED_ROWS = 10_000
"""Data sets that are larger are not read as a whole for a look."""
MAX_BYTES_COMPARED = 2_000_000
"""In larger ones near duplicates are not looked for: that takes a millisecond a row."""
MAX_DOCUMENT_BYTES = 200_000_000
MAX_ROWS_READ = 500
"""Of files that are too large to be read for a look."""
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
    """What the data sets that are at hand hold for this run; of larger ones on this machine the first rows.

    Raises DataError as `split` does, and for a row that lacks what a metric needs.
    """
    from ray_jobs.data.load import load_pairs, load_prompts

    data = config.data
    if at_hand(data.preferences) and at_hand(data.prompts):
        yield from _split_lines(config)
        return
    yield from _part_lines(data.preferences, "pair", load_pairs, config)
    yield from _part_lines(data.prompts, "prompt", load_prompts, config)


def _split_lines(config: Config) -> Iterator[str]:
    from ray_jobs.data.split import split

    data = config.data
    size = sum(size_of(source) for source in (data.preferences, data.prompts))
    compared = data if size <= MAX_BYTES_COMPARED else data.model_copy(update={"near_overlap": "off"})
    splits = split(compared, config.seed)
    _check_inputs(config, splits.prompts)
    report = splits.report
    yield f"usable: {_usable(report['preferences'], 'pairs')}; {len(splits.train)} to train on"
    left_out = report["overlap"]["dropped_prompts"] + report["near_overlap"]["dropped"]
    near = f"; {left_out} left out that stand (nearly) in the pairs" if left_out else ""
    yield f"usable: {_usable(report['prompts'], 'prompts')}{near}"
    yield from _shown(report["preferences"], "pair")
    yield from _shown(report["prompts"], "prompt")


def _part_lines(
    source: Source, what: str, load: Callable[[Source, int, int | None], Any], config: Config
) -> Iterator[str]:
    """Of one data set, where it is on this machine; of a large one the first rows."""
    from ray_jobs.data.report import describe

    if is_large_document(source):
        yield f"{source.source}: a single JSON document, not read for a look; JSON lines are"
    elif is_local(source):
        limit = None if at_hand(source) else MAX_ROWS_READ
        loaded = load(source, config.seed, limit)
        if what == "prompt":
            _check_inputs(config, loaded.rows)
        found = describe(source, loaded)
        yield f"usable: {_usable(found, f'{what}s')}{_rest(found, limit)}"
        yield from _shown(found, what)


def _rest(found: Mapping[str, Any], limit: int | None) -> str:
    return f"; the first {limit} rows, the rest was not read" if found["rows_in"] == limit else ""


def _shown(found: Mapping[str, Any], what: str) -> Iterator[str]:
    """How a data set of one's own was read; `found` is what `describe` tells of it."""
    from ray_jobs.data.report import column_line, first_lines

    if found["source"].startswith("bundled:"):
        return
    if found["prompts_cut_off"]:
        yield f"in {found['prompts_cut_off']} rows both answers began with the prompt: it was cut off"
    if found["first_problem"]:
        yield f"first of the {what}s not used: {found['first_problem']}"
    yield f"{what}s: {column_line(found)}"
    yield from (f"first {what}, {line}" for line in first_lines(found))


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
    return is_local(source) and size_of(source) <= MAX_BYTES_READ


def is_local(source: Source) -> bool:
    """Whether a data set is on this machine."""
    if source.kind == "bundled":
        from ray_jobs.data.bundled.rows import NUM_ROWS

        return NUM_ROWS[source.source] <= MAX_BUNDLED_ROWS
    return source.kind == "file" and "://" not in source.source


def is_large_document(source: Source) -> bool:
    """Whether a local data set has to be held in memory as a whole to be read at all."""
    if source.kind != "file" or not is_local(source):
        return False
    documents = (path for path in files_of(source.source) if is_document(path.name))
    return any(path.stat().st_size > MAX_DOCUMENT_BYTES for path in documents)


def size_of(source: Source) -> int:
    """Bytes of a local data set's rows, about; 0 for bundled ones."""
    if source.kind == "bundled":
        return 0
    return sum(
        path.stat().st_size * (PACKED_TIMES if path.suffix in PACKED else 1)
        for path in files_of(source.source)
    )
