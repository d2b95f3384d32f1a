"""Data sets, from wherever they are, as typed rows."""

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from ray_jobs.data.columns import CONVERSATIONS, chosen_column, has, prompt_column, rejected_column
from ray_jobs.data.formats import RawRow
from ray_jobs.data.intake import Intake, Lack
from ray_jobs.data.loaded import Loaded
from ray_jobs.data.parse import Read, brings_prompt, name_it, other_prompt, read_pair, read_prompt
from ray_jobs.data.settings import Columns, Source
from ray_jobs.data.winners import example_for, verdict_column
from ray_jobs.records import Pair, Prompt

log = logging.getLogger(__name__)

Row = TypeVar("Row", Pair, Prompt)


def load_pairs(source: Source, seed: int, max_rows_read: int | None = None) -> Loaded[Pair]:
    """The pairs of a data set, or of its first rows.

    Raises DataError when the data set cannot be read or holds no usable pair.
    """
    columns = source.columns

    def lacks(row: Mapping[str, Any]) -> Lack | None:
        answers = chosen_column(columns), rejected_column(columns)
        names = answers if brings_prompt(row, columns) else (*answers, prompt_column(row, columns))
        missing = next((name for name in names if not has(row, name)), None)
        return None if missing is None else (missing, _hint(row, columns, missing, missing in answers))

    return _load(source, seed, read_pair, lacks, max_rows_read)


def load_prompts(source: Source, seed: int, max_rows_read: int | None = None) -> Loaded[Prompt]:
    """The prompts of a data set, or of its first rows.

    Raises DataError when the data set cannot be read or holds no usable prompt.
    """
    columns = source.columns

    def lacks(row: Mapping[str, Any]) -> Lack | None:
        names = (columns.conversations or CONVERSATIONS[0], CONVERSATIONS[1], prompt_column(row, columns))
        if any(has(row, name) for name in names):
            return None
        wanted = columns.conversations or columns.prompt or names[0]
        return wanted, _hint(row, columns, wanted, is_answer=False)

    return _load(source, seed, read_prompt, lacks, max_rows_read)


def _hint(row: Mapping[str, Any], columns: Columns, missing: str, is_answer: bool) -> str:
    """What to do about a column that a row lacks."""
    if is_answer and (column := verdict_column(row)) and columns.chosen is None:
        return (
            f"if column {column!r} says which of two answers is better, name these with columns.chosen and "
            f"columns.rejected, and it with columns.winner: {example_for(column)}"
        )
    if not is_answer and (other := other_prompt(row, columns)):
        return name_it(other)
    return f"name it with columns.{missing}" if missing in Columns.model_fields else ""


def _load(
    source: Source,
    seed: int,
    read: Callable[[Mapping[str, Any], Columns], Read[Row]],
    lacks: Callable[[Mapping[str, Any]], Lack | None],
    max_rows_read: int | None,
) -> Loaded[Row]:
    intake: Intake[Row] = Intake(source, seed, read, lacks, is_part=max_rows_read is not None)
    for number, raw in enumerate(islice(raw_rows(source), max_rows_read), start=1):
        intake.take(number, raw)
    return intake.finish()


def raw_rows(source: Source) -> Iterator[RawRow]:
    """The rows of a bundled, local, remote or hub data set, as they were written."""
    if source.kind == "bundled":
        from ray_jobs.data.bundled.rows import bundled_rows

        yield from (
            RawRow(f"{source.source} row {number}", row)
            for number, row in enumerate(bundled_rows(source.source), start=1)
        )
    elif source.kind == "file":
        from ray_jobs.data.files import file_rows

        yield from file_rows(source.source)
    else:
        from ray_jobs.data.hub import hub_rows

        log.info("data     %s: loading from the hub", source.source)
        yield from hub_rows(source)
