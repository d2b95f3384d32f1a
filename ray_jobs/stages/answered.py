"""How far models have answered, and their answers, finished or not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.errors import RunConflict
from ray_jobs.runs import RunFolder
from ray_jobs.stages.blocks import Range, blocks_at, cut
from ray_jobs.tables import has_rows, iter_rows
from serving.storage.mirror import shared

ANSWERS = "answers/{model}/part-00000.parquet"

Part = tuple[int, int | None]
"""First row, and the row after the last; None: up to the end."""
WHOLE: Part = (0, None)


def unfinished_of(folder: RunFolder, model: str) -> Path:
    """Where blocks of a model's answers lie until all are there."""
    return folder.path("answers", model, "unfinished")


@dataclass(frozen=True)
class Progress:
    """What several models have answered of the same prompts."""

    answered: int
    """Prompts, from the first one on, that all of them have answered."""
    blocks_left: int
    """Blocks of rows that some engine still has to answer, of all models."""


def progress_of(folder: RunFolder, models: Sequence[str], num_prompts: int, rows_per_block: int) -> Progress:
    gaps = [missing(folder, model, num_prompts) for model in models]
    answered = min((ranges[0][0] for ranges in gaps if ranges), default=num_prompts)
    return Progress(answered, sum(len(cut(ranges, rows_per_block)) for ranges in gaps))


def missing(folder: RunFolder, model: str, num_prompts: int) -> list[Range]:
    """The ranges of prompts that the model has not answered yet."""
    if has_rows(folder.path(ANSWERS.format(model=model)), num_prompts):
        return []
    return blocks_at(shared(unfinished_of(folder, model))).missing(num_prompts)


def answer_rows_of(folder: RunFolder, model: str, between: Part = WHOLE) -> Iterator[dict[str, Any]]:
    """A model's answers to some prompts: of its file, or of its blocks as long as that is not there."""
    whole = folder.path(ANSWERS.format(model=model))
    start, stop = between
    if stop is not None and not whole.exists():
        try:
            yield from blocks_at(shared(unfinished_of(folder, model))).rows(start, stop)
            return
        except (RunConflict, FileNotFoundError):
            if not whole.exists():  # else it took the place of the blocks in the meantime
                raise
    yield from iter_rows(whole, start, stop)
