"""Finished blocks of rows: one small file each, named by the range of rows that it answers."""

import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray_jobs.errors import RunConflict
from ray_jobs.tables import read_table, table_of, write_tables
from serving.storage.remote import Remote, is_uri

Range = tuple[int, int]
"""First row, and the row after the last."""

NAME = re.compile(r"rows-(\d{12})-(\d{12})\.parquet")

READERS = 16
"""Blocks that are read from a store at once."""

Key = tuple[str, ...]


def name_of(block: Range) -> str:
    return "rows-{:012d}-{:012d}.parquet".format(*block)


def said_after_code(result: Mapping[str, Any]) -> str | None:
    """The words after the code in `error`, if there are any."""
    return (result.get("error") or "").partition(":")[2].strip() or None


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
    gpus: float = 0.0
    """GPUs that an actor asks for; it then goes to the nodes that have some."""
    why: Callable[[Mapping[str, Any]], str | None] = said_after_code
    """Of a result that is none: the reason in words, if it is known."""

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

    def num_failed(self, results: Iterable[Mapping[str, Any]]) -> int:
        """How many say in `error` or `failure` why they are none."""
        return sum(any(result.get(name) is not None for name in ("error", "failure")) for result in results)

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
        return self._folder / name_of(block)

    def has(self, block: Range) -> bool:
        return self.path(block).exists()

    def write(self, block: Range, results: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        write_tables(self.path(block), [table_of(results, columns)], columns)

    def done(self) -> list[Range]:
        """What is there, in order. Blocks that lie within others are passed over."""
        found = [NAME.fullmatch(name) for name in self._names()]
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
        for block, read in self._reads():
            try:
                table = read()
            except RunConflict:
                self._remove(block)
                raise
            yield table

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Results of rows `start` to `stop` (exclusive) of a job that makes one of each row.

        Raises RunConflict when some are missing or cannot be read.
        """
        found: list[dict[str, Any]] = []
        for first, last in self.done():
            if first < stop and last > start:
                rows = self._read((first, last)).to_pylist()
                found += rows[max(0, start - first) : stop - first]
        if len(found) != stop - start:
            raise RunConflict(f"{len(found)} results for rows {start} to {stop}")
        return found

    def _reads(self) -> Iterator[tuple[Range, Callable[[], Any]]]:
        for block in self.done():
            yield block, partial(self._read, block)

    def _names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []

    def _read(self, block: Range) -> Any:
        return read_table(self.path(block))

    def _remove(self, block: Range) -> None:
        self.path(block).unlink(missing_ok=True)


class StoredBlocks(Blocks):
    """The same in a folder of an object store: nothing of them is kept on this node."""

    def __init__(self, uri: str) -> None:
        self._remote = Remote(uri)

    def has(self, block: Range) -> bool:
        return self._object(block).stamp() is not None

    def write(self, block: Range, results: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            beside = Blocks(Path(folder))
            beside.write(block, results, columns)
            self._object(block).upload(beside.path(block))

    def _names(self) -> list[str]:
        return list(self._remote.listing())

    def _reads(self) -> Iterator[tuple[Range, Callable[[], Any]]]:
        """Several at once and some ahead: a store takes its time for each."""
        ahead: deque[tuple[Range, Callable[[], Any]]] = deque()
        with ThreadPoolExecutor(READERS) as readers:
            for block in self.done():
                ahead.append((block, readers.submit(self._read, block).result))
                if len(ahead) > 2 * READERS:
                    yield ahead.popleft()
            yield from ahead

    def _read(self, block: Range) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            here = Blocks(Path(folder)).path(block)
            self._object(block).download(here)
            return read_table(here)

    def _remove(self, block: Range) -> None:
        self._object(block).remove()

    def _object(self, block: Range) -> Remote:
        return self._remote / name_of(block)


def blocks_at(address: str) -> Blocks:
    """The blocks in a folder, or in one of an object store."""
    return StoredBlocks(address) if is_uri(address) else Blocks(Path(address))


def cut(ranges: Iterable[Range], size: int) -> list[Range]:
    """The ranges in pieces of at most `size` rows, whose ends lie on multiples of `size`."""
    pieces = []
    for start, stop in ranges:
        while start < stop:
            end = min(stop, (start // size + 1) * size)
            pieces.append((start, end))
            start = end
    return pieces
