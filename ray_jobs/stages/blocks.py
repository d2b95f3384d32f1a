"""Finished blocks of rows: one small file each, named by the range of rows that it answers."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.errors import RunConflict
from ray_jobs.tables import read_table, table_of, write_tables

Range = tuple[int, int]
"""First row, and the row after the last."""

NAME = re.compile(r"rows-(\d{12})-(\d{12})\.parquet")

Key = tuple[str, ...]


@dataclass(frozen=True)
class RowJob:
    """What a pool of actors does with rows.

    `actor(spec)` is called with Arrow tables of `columns_in` and gives tables of `columns_out`, whose rows
    are told apart by their `key` columns; `keys_of` names the keys that one row leads to.
    """

    stage: str
    what: str
    actor: Callable[..., Any]
    spec: dict[str, Any]
    columns_in: Mapping[str, str]
    columns_out: Mapping[str, str]
    key: tuple[str, ...]
    keys_of: Callable[[Mapping[str, Any]], list[Key]]
    failed: Callable[[Mapping[str, Any], str], Sequence[Mapping[str, Any]]] | None = None
    """Results of a row that cannot be processed; by default its keys, and why, in `error` or `failure`."""

    def key_of(self, result: Mapping[str, Any]) -> Key:
        return tuple(result[name] for name in self.key)

    def in_order(
        self, rows: Sequence[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """One result for every key of every row, in the order of the rows.

        Raises LookupError when a result is missing, or is there for no row or twice.
        """
        keys = [key for row in rows for key in self.keys_of(row)]
        found: dict[Key, Mapping[str, Any]] = {}
        for result in results:
            key = self.key_of(result)
            if key in found:
                raise LookupError(f"two results for {key}")
            found[key] = result
        if found.keys() != set(keys) or len(found) != len(keys):
            wrong = sorted(found.keys() ^ set(keys))[:3]
            raise LookupError(f"{len(found)} results for {len(keys)} keys: {wrong}")
        return [found[key] for key in keys]

    def quarantined(self, row: Mapping[str, Any], error: str) -> list[Mapping[str, Any]]:
        """Results of a row that cannot be processed; `error` is a code, a colon and the reason."""
        if self.failed is not None:
            return list(self.failed(row, error))
        texts = {"error": error, "failure": error.partition(":")[0]}
        keys = (dict(zip(self.key, key, strict=True)) for key in self.keys_of(row))
        return [{name: (texts | key).get(name) for name in self.columns_out} for key in keys]


class Blocks:
    """The blocks in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, block: Range) -> Path:
        return self._folder / "rows-{:012d}-{:012d}.parquet".format(*block)

    def write(self, block: Range, results: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        write_tables(self.path(block), [table_of(results, columns)], columns)

    def done(self) -> list[Range]:
        """What is there, in order. Blocks that lie within others are passed over."""
        if not self._folder.is_dir():
            return []
        found = [NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        ranges = sorted(
            ((int(match[1]), int(match[2])) for match in found if match),
            key=lambda block: (block[0], -block[1]),
        )
        kept: list[Range] = []
        for block in ranges:
            if not kept or block[0] >= kept[-1][1]:
                kept.append(block)
        return kept

    def missing(self, num_rows: int) -> list[Range]:
        """The ranges of rows that no block answers."""
        gaps, at = [], 0
        for start, stop in [*self.done(), (num_rows, num_rows)]:
            if start > at:
                gaps.append((at, start))
            at = stop
        return gaps

    def tables(self) -> Iterator[Any]:
        """All results in the order of the rows. A damaged block is thrown away, then RunConflict raised."""
        for block in self.done():
            try:
                table = read_table(self.path(block))
            except RunConflict:
                self.path(block).unlink(missing_ok=True)
                raise
            yield table


def cut(ranges: Iterable[Range], size: int) -> list[Range]:
    """The ranges in pieces of at most `size` rows, whose ends lie on multiples of `size`."""
    pieces = []
    for start, stop in ranges:
        while start < stop:
            end = min(stop, (start // size + 1) * size)
            pieces.append((start, end))
            start = end
    return pieces
