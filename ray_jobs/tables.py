"""Typed rows in Parquet files that appear whole or not at all."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.errors import RunConflict
from ray_jobs.runs import write_whole

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


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema(columns)), buffer)
    write_whole(path, buffer.getvalue())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of one file. Raises RunConflict, naming the file, when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise RunConflict(f"{path}: cannot be read: {error}") from error
    return rows


def parts(folder: Path) -> list[Path]:
    """The Parquet files of a folder, in order of name."""
    return sorted(folder.glob("*.parquet"))


def read_parts(folder: Path) -> Iterator[dict[str, Any]]:
    for part in parts(folder):
        yield from read_rows(part)
