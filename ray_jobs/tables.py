"""Typed rows in Parquet files that appear whole or not at all."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from ray_jobs.errors import RunConflict
from ray_jobs.runs import replacing

ROWS_PER_GROUP = 1024
"""Rows that a reader of a range has to decode at once."""
GROUPS_HELD = 8

MESSAGES = "list<struct<role: string, content: string>>"
PAIR_COLUMNS = {
    "id": "string",
    "source": "string",
    "prompt": MESSAGES,
    "chosen": "string",
    "rejected": "string",
}
PROMPT_COLUMNS = {"id": "string", "source": "string", "messages": MESSAGES, "reference": "string"}


def schema(columns: Mapping[str, str]) -> Any:
    """The Arrow schema of columns given as name -> type name."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "double": pa.float64(),
        MESSAGES: pa.list_(message),
    }
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])


def table_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema(columns))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    write_tables(path, [table_of(rows, columns)], columns)


def write_tables(path: Path, tables: Iterable[Any], columns: Mapping[str, str]) -> None:
    """Arrow tables into one file, one after another; a few thousand rows at once are held in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        replacing(path) as file,
        pq.ParquetWriter(file, schema(columns), write_page_checksum=True) as writer,
    ):
        for group in grouped(tables):
            writer.write_table(pa.concat_tables(group), row_group_size=ROWS_PER_GROUP)


def grouped(tables: Iterable[Any]) -> Iterator[list[Any]]:
    """Tables in groups that make a row group or more: readers hold a description of each row group."""
    group: list[Any] = []
    for table in tables:
        group.append(table)
        if sum(len(part) for part in group) >= ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def read_table(path: Path) -> Any:
    """One file as an Arrow table. Raises RunConflict, naming the file, when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise RunConflict(f"{path}: cannot be read: {error}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of one file. Raises RunConflict, naming the file, when it is missing or damaged."""
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def iter_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """The same one after another, or those from `start` to `stop` (exclusive), with few in memory at once."""
    file = RowFile(path)
    end = len(file) if stop is None else min(stop, len(file))
    for at in range(start, end, ROWS_PER_GROUP):
        yield from file.rows(at, min(at + ROWS_PER_GROUP, end))


def iter_tables(path: Path) -> Iterator[Any]:
    """A file's rows as Arrow tables, row group by row group."""
    file = RowFile(path)
    for number in range(file.num_groups):
        yield file.group(number)


def same_rows(path: Path, other: Path) -> bool:
    """Whether two files that were written here hold the same rows; false where one cannot be read."""
    try:
        pairs = zip(iter_tables(path), iter_tables(other), strict=True)
        return all(table.equals(wanted) for table, wanted in pairs)
    except (RunConflict, ValueError):
        return False


def has_rows(path: Path, number: int) -> bool:
    """Whether a Parquet file is there, can be read, and has so many rows."""
    try:
        return path.exists() and len(RowFile(path)) == number
    except RunConflict:
        return False


class RowFile:
    """A Parquet file of which ranges of rows are read, by several threads, without holding all of it."""

    def __init__(self, path: Path) -> None:
        """Raises RunConflict, naming the file, when it is missing or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise RunConflict(f"{path}: cannot be read: {error}") from error
        metadata = self._file.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))
        self.num_groups = len(sizes)
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Rows `start` to `stop` (exclusive). Raises RunConflict when they cannot be read."""
        found: list[dict[str, Any]] = []
        number = bisect_right(self._starts, start) - 1
        while number < len(self._starts) - 1 and self._starts[number] < stop:
            begin = self._starts[number]
            group = self.group(number)
            found += group.slice(max(0, start - begin), stop - max(begin, start)).to_pylist()
            number += 1
        return found

    def group(self, number: int) -> Any:
        """A row group as an Arrow table; the last few stay in memory. Raises RunConflict as `rows` does."""
        import pyarrow as pa

        with self._lock:
            if number not in self._groups:
                try:
                    self._groups[number] = self._file.read_row_group(number)
                except (OSError, pa.ArrowException) as error:
                    raise RunConflict(f"{self._path}: cannot be read: {error}") from error
            self._groups.move_to_end(number)
            if len(self._groups) > GROUPS_HELD:
                self._groups.popitem(last=False)
            return self._groups[number]
