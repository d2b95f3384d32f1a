"""Micro-batches: ranges of prompts whose answers are judged while others are still answered.

    ahead/unfinished/judgements-<digest>/batches/batch-<start>-<stop>.begun     that it is taken
                                                 batch-<start>-<stop>/          rows, blocks, results

Each goes on where the one before ends, so that their results stand in the order of the prompts.
"""

import re
from pathlib import Path

from ray_jobs.runs import RunFolder
from ray_jobs.stages.blocks import Range

BEGUN = ".begun"
NAME = re.compile(r"batch-(\d{12})-(\d{12})")


def name_of(batch: Range) -> str:
    return "batch-{:012d}-{:012d}".format(*batch)


def path_of(begun: Path, batch: Range) -> Path:
    return begun / "batches" / name_of(batch)


def begin(folder: RunFolder, begun: Path, batch: Range) -> None:
    """Notes that somebody judges the batch."""
    mark = path_of(begun, batch).with_suffix(BEGUN)
    folder.write(mark.relative_to(folder.root).as_posix(), b"")


def begun_batches(begun: Path | None) -> list[Range]:
    """Those that were begun, in order, from the first prompt on; none where nothing was."""
    marks = begun.glob(f"batches/*{BEGUN}") if begun else ()
    names = filter(None, (NAME.fullmatch(mark.stem) for mark in marks))
    found: list[Range] = []
    for start, stop in sorted((int(name[1]), int(name[2])) for name in names):
        if start == (found[-1][1] if found else 0):
            found.append((start, stop))
    return found


def next_batch(judged: int, answered: int, least: int, most: int) -> Range | None:
    """The prompts to judge next, `least` to `most` of them; None where too few are answered yet.

    `judged`, `answered`: how many are, from the first one on.
    """
    stop = min(answered, judged + most)
    return (judged, stop) if stop - judged >= least else None


def seconds_left(elapsed_s: float, left_before: int, left: int) -> float:
    """How long the other blocks take, at the pace of those that were done; infinite where none is known."""
    done = left_before - left
    return elapsed_s * left / done if done > 0 else float("inf")
