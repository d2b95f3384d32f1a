"""Rows out of an open JSONL, JSON, CSV or Parquet stream, a few at a time."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

from ray_jobs.errors import DataError

MAX_LINE_BYTES = 8_000_000
"""A longer line is not held in memory; what is read of a shorter one is judged by its text."""
MAX_JSON_BYTES = 1_000_000_000
MAX_CELL_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class RawRow:
    """A row as it was read. `place` says where ("FILE line 7"), `problem` why it could not be parsed."""

    place: str
    value: Any
    problem: str | None = None


def json_lines(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """A JSON value a line, or an array of rows on the first; blank lines are no rows.

    Raises DataError for a line that is not JSON, and for a single object that holds the rows.
    """
    num_rows, first = 0, None
    for number, line in enumerate(_lines(stream), start=1):
        place = f"{name} line {number}"
        if line is None:
            yield RawRow(place, None, "too_large")
        elif line.strip():
            num_rows += 1
            if num_rows == 1 and line.strip() == b"[":
                raise DataError(f"{name}: is one JSON array; give it a name that ends in .json")
            row = _json_row(_decoded(line, place), place)
            first = row.value if num_rows == 1 else first
            yield from _rows_of(row, name) if num_rows == 1 else [row]
    if num_rows == 1 and _holds_rows(first):
        raise DataError(f"{name}: {_ONE_OBJECT}")


def _rows_of(row: RawRow, name: str) -> Iterator[RawRow]:
    """The rows of an array that stands on one line; any other value is a row."""
    if not _is_array_of_rows(row.value) or _TURN & row.value[0].keys():
        yield row
        return
    for number, value in enumerate(row.value, start=1):
        yield RawRow(f"{name} row {number}", value)


def _is_array_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _holds_rows(value: Any) -> bool:
    """Whether an object is no row, but holds them all."""
    return isinstance(value, dict) and any(_is_array_of_rows(value.get(name)) for name in _HOLDERS)


def json_document(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """An array of rows, or, where the text does not begin with one, a JSON value a line."""
    data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise DataError(f"{name}: more than {MAX_JSON_BYTES} bytes in one JSON document; write JSON lines")
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        _refuse_one_object(start, name)
        yield from json_lines(io.BytesIO(data), name)
        return
    try:
        rows = json.loads(_decoded(data, name))
    except json.JSONDecodeError as error:
        raise DataError(f"{name} line {error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not readable JSON: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield RawRow(f"{name} row {number}", row)


def csv_table(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of a table with a header line, every value text; `;` and tabs separate as well as commas.

    Raises DataError for a line of other width, or that is not UTF-8.
    """
    lines = _text_lines(stream, name)
    first = next(lines, "")
    says = re.fullmatch(r"sep=(.)\s*", first)
    header_line = next(lines, "") if says else first
    separator = says[1] if says else _separator(header_line)
    previous_limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader(chain([header_line], lines), strict=True, delimiter=separator)
    before = 1 if says else 0
    try:
        header = next(reader, [])
        _refuse_twice(header, f"{name} line {1 + before}")
        for row in reader:
            place = f"{name} line {reader.line_num + before}"
            if row and len(row) != len(header):
                raise DataError(f"{place}: {len(row)} values, {len(header)} columns")
            if row:
                yield RawRow(place, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num + before}: {error}") from error
    finally:
        csv.field_size_limit(previous_limit)


def _separator(header: str) -> str:
    """What separates the names in a header that has no comma; a comma where nothing else may."""
    return next((char for char in ",;\t" if char in header), ",")


def _text_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Lines with their ends, whichever these are. Raises DataError, with the line, for what is not UTF-8."""
    number = 0
    for data in iter(stream.readline, b""):
        for line in data.splitlines(keepends=True):
            number += 1
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                said = not_utf8(line[:2])
                more = f" (byte {error.start}); save it as CSV UTF-8" if said == NOT_UTF8 else ""
                raise DataError(f"{name} line {number}: {said}{more}") from error


def parquet_table(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of all columns. Raises DataError when the file is cut off or no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(stream)
        _refuse_twice(file.schema_arrow.names, name)
        for batch in file.iter_batches(batch_size=256):
            names = batch.schema.names
            columns = [
                _cells(column, f"{name} after row {number}: column {of!r}")
                for of, column in zip(names, batch.columns, strict=True)
            ]
            for cells in zip(*columns, strict=True):
                number += 1
                yield RawRow(f"{name} row {number}", dict(zip(names, cells, strict=True)))
    except UnicodeDecodeError as error:
        raise DataError(f"{name} after row {number}: not UTF-8 text") from error
    except (pa.ArrowException, OSError) as error:
        first = (str(error).splitlines() or ["damaged"])[0]
        raise DataError(f"{name} after row {number}: not readable Parquet: {first}") from error


def _cells(column: Any, place: str) -> list[Any]:
    """A column's values. Raises DataError for one that Python has no value for, such as a date after 9999."""
    try:
        cells: list[Any] = column.to_pylist()
    except OverflowError as error:
        raise DataError(f"{place}: {error}; leave the column out") from error
    return cells


READERS: dict[str, Callable[[BinaryIO, str], Iterator[RawRow]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_document,
    ".csv": csv_table,
    ".parquet": parquet_table,
}


def _refuse_twice(header: list[str], place: str) -> None:
    if twice := [column for at, column in enumerate(header) if column in header[:at]]:
        raise DataError(f"{place}: column {twice[0]!r} stands twice")


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines; None for one that is too long, which is skipped without being held."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield None


def _json_row(text: str, place: str) -> RawRow:
    try:
        return RawRow(place, json.loads(text))
    except RecursionError:
        return RawRow(place, None, "too_deep")
    except ValueError as error:
        message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{place}: not JSON: {message}") from error


def _refuse_one_object(data: bytes, name: str) -> None:
    """Raises DataError for a document that is one object over several lines, which is no row a line."""
    first, _, more = data.partition(b"\n")
    if not more.strip() or first.rstrip().endswith(b"}"):
        return
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(whole, dict):
        raise DataError(f"{name}: {_ONE_OBJECT}")


_TURN = {"role", "from"}
_ONE_OBJECT = "is one JSON object; rows are an array of objects, or one object a line"
_HOLDERS = ("data", "rows", "train", "examples", "instances", "items", "records")
"""Names under which such an object has its rows."""
NOT_UTF8 = "not UTF-8 text"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
GZIP = b"\x1f\x8b"


def not_utf8(start: bytes) -> str:
    """What a text that is not UTF-8 probably is, by its first bytes."""
    if start.startswith(UTF16):
        return "is UTF-16; save it as UTF-8"
    if start.startswith(GZIP):
        return "is gzip data; give it a name that ends in .gz"
    return NOT_UTF8


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        said = not_utf8(data[:2])
        where = f" (byte {error.start})" if said == NOT_UTF8 else ""
        raise DataError(f"{place}: {said}{where}") from error
