"""Reading files: every format gives the same rows, and what is wrong with a file is said with its line."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data import files, formats
from ray_jobs.data.files import file_rows
from ray_jobs.data.report import outlook
from ray_jobs.data.settings import Source
from ray_jobs.errors import DataError

ROWS = [{"prompt": f'Ask {n}, "please"\n', "chosen": f"ä{n}", "rejected": "no"} for n in range(600)]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, str]], separator: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def late_as_parquet() -> bytes:
    """A time that Python has no date for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["Hi"], "at": pa.array([2**55], pa.timestamp("ms"))}), buffer)
    return buffer.getvalue()


def twice_as_parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), buffer)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def values(source: str) -> list[Any]:
    return [row.value for row in file_rows(source)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.ndjson", lines(ROWS).replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\n\n")),
        ("a.jsonl.gz", gzip.compress(lines(ROWS))),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.json", lines(ROWS)),
        ("a.csv", as_csv(ROWS)),
        ("a.csv", b"\xef\xbb\xbf" + as_csv(ROWS)),
        ("a.csv", as_csv(ROWS, ";")),
        ("a.csv", b"sep=;\r\n" + as_csv(ROWS, ";")),
        ("a.csv", b"\xef\xbb\xbf" + as_csv(ROWS, "\t")),
        ("a.jsonl", json.dumps(ROWS).encode()),
        ("A.PARQUET", as_parquet(ROWS)),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    assert values(put(tmp_path / name, data)) == ROWS


def test_folders_and_globs_are_read_in_order_of_name(tmp_path: Path) -> None:
    put(tmp_path / "b.jsonl", lines(ROWS[2:4]))
    put(tmp_path / "a.csv", as_csv(ROWS[:2]))
    put(tmp_path / "README.md", b"no rows")
    put(tmp_path / "._a.csv", b"\0\5 what a Mac leaves beside a file")
    assert values(str(tmp_path)) == values(str(tmp_path / "*")) == ROWS[:4]
    assert values(str(tmp_path / "*.jsonl")) == ROWS[2:4]
    assert values(tmp_path.as_uri() + "/b.jsonl") == ROWS[2:4]


def test_hidden_folders_are_the_systems_unless_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ".home"
    for name in ("a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "part/.cache/b.jsonl", "part/c.jsonl"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        put(home / name, lines([{"file": name}]))
    monkeypatch.chdir(home)
    for folder in (str(home), "."):
        for source, found in (
            (folder, ["a.jsonl", "part/c.jsonl"]),
            (f"{folder}/*", ["a.jsonl"]),
            (f"{folder}/**/*.jsonl", ["a.jsonl", "part/c.jsonl"]),
            (f"{folder}/part/.cache", ["part/.cache/b.jsonl"]),
            (f"{folder}/part/.cache/*.jsonl", ["part/.cache/b.jsonl"]),
        ):
            assert [row["file"] for row in values(source)] == found
            assert [path.absolute() for path in files.files_of(source)] == [home / name for name in found]


@pytest.mark.parametrize("data", [b"a\r1\r2\r", b"a\r\n1\r\n2\r\n", b"a\n1\n\n2"])
def test_lines_of_a_table_may_end_in_any_way(tmp_path: Path, data: bytes) -> None:
    assert values(put(tmp_path / "a.csv", data)) == [{"a": "1"}, {"a": "2"}]
    assert values(put(tmp_path / "one.csv", b"a;b,c\n1;2,3\n")) == [{"a;b": "1;2", "c": "3"}]


def test_a_line_of_messages_is_no_array_of_rows(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    assert values(put(tmp_path / "a.jsonl", lines([talk, talk]))) == [talk, talk]
    assert values(put(tmp_path / "b.jsonl", lines([{"data": [{"a": 1}]}] * 2))) == [{"data": [{"a": 1}]}] * 2
    assert values(put(tmp_path / "c.jsonl", lines([{"conversations": talk}]))) == [{"conversations": talk}]


def test_what_the_datasets_library_puts_beside_the_data_is_no_data(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", lines(ROWS[:2]))
    for name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"):
        put(tmp_path / name, json.dumps({"features": {"a": 1}}, indent=2).encode())
    assert values(str(tmp_path)) == values(str(tmp_path / "*")) == ROWS[:2]
    assert len(files.files_of(str(tmp_path))) == 5  # inputs of runs that were begun before


def test_a_saved_data_set_is_told_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    put(tmp_path / "train" / "data-00000-of-00001.arrow", b"ARROW1")
    put(tmp_path / "train" / "state.json", b"{}")
    with pytest.raises(DataError) as caught:
        values(str(tmp_path))
    says = f'was written by save_to_disk; use ds.to_parquet("{tmp_path}.parquet")'
    assert str(caught.value) == f"{tmp_path}: {says}"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.jsonl"], "1 local file"),
        (["a.jsonl", "b.csv", "state.json"], "2 local files"),
        (
            ["data/train-0.jsonl", "data/test-0.jsonl"],
            "2 local files, of train and test alike: all are read; a ",
        ),
        (["train/a.jsonl", "validation/a.jsonl"], "2 local files, of train and test alike: all are read"),
        (["train-0.jsonl", "train-1.jsonl"], "2 local files"),
        (["latest.jsonl", "training.jsonl"], "2 local files"),
    ],
)
def test_the_plan_counts_files_and_tells_of_those_for_tests(
    tmp_path: Path, names: list[str], says: str
) -> None:
    folder = tmp_path / "test"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        put(folder / name, b"")
    text = outlook(Source(source=str(folder)))
    assert text.startswith(f"{folder}: {says}")
    assert ("alike" in text) == ("alike" in says)
    assert outlook(Source(source=f"{folder}/**")).startswith(f"{folder}/**: {says}")


def test_a_uri_of_another_file_system_is_read(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://bucket/rows.jsonl", "wb") as stream:
        stream.write(lines(ROWS[:3]))
    assert values("memory://bucket/rows.jsonl") == ROWS[:3]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", lines(ROWS[:6])[:-9], "a.jsonl line 6: not JSON: Unterminated string"),
        ("a.jsonl", b'{"a": 1}\n\n{"b": "\xff"}\n', "a.jsonl line 3: not UTF-8 text (byte 7)"),
        ("a.jsonl", b"{'a': 1}\n", "a.jsonl line 1: not JSON: Expecting property name"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", "a.jsonl line 1: not JSON: Exceeds the limit"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-30], "a.jsonl.gz: damaged gzip data"),
        ("a.jsonl.gz", lines(ROWS), "a.jsonl.gz: damaged gzip data"),
        ("a.json", b'[{"a": 1},\n{"b": ', "a.json line 2: not JSON"),
        ("a.json", b"[" * 100_000, "a.json: not readable JSON"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv line 3: 3 values, 2 columns"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv line 2: not UTF-8 text (byte 2); save it as CSV UTF-8"),
        (
            "a.csv",
            b"a,b\n" + b'1,"x\n\ny"\r\n' * 3000 + b"1,caf\xe9\n",
            "a.csv line 9002: not UTF-8 text (byte 5); save it as CSV UTF-8",
        ),
        ("a.csv", b'a,b\n1,"2\n', "a.csv line 2: unexpected end of data"),
        ("a.parquet", as_parquet(ROWS)[:-9], "a.parquet after row 0: not readable Parquet"),
        ("a.parquet", late_as_parquet(), "a.parquet after row 0: column 'at': date value out of range"),
        ("a.parquet", twice_as_parquet(), "a.parquet: column 'a' stands twice"),
        ("a.parquet", b"PAR1", "a.parquet after row 0: not readable Parquet"),
        ("a.parquet.gz", b"", "must end in .jsonl"),
        ("a.jsonl", lines(ROWS[:2]).decode().encode("utf-16"), "a.jsonl line 1: is UTF-16; save it as UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "a.csv line 1: is UTF-16; save it as UTF-8"),
        ("a.jsonl", gzip.compress(lines(ROWS)), "a.jsonl line 1: is gzip data; give it a name that ends in"),
        ("a.csv", b"a,b,a\n1,2,3\n", "a.csv line 1: column 'a' stands twice"),
        ("a.json", b'{\n "a": [1,\n 2]\n}\n', "a.json: is one JSON object; rows are an array of objects"),
        ("a.json", b'{"version": 1, "data": [{"a": 1}]}', "a.json: is one JSON object; rows are an array"),
        ("a.jsonl", b'\n{"data": [{"a": 1}]}\n\n', "a.jsonl: is one JSON object; rows are an array"),
        (
            "a.jsonl",
            json.dumps(ROWS, indent=1).encode(),
            "a.jsonl: is one JSON array; give it a name",
        ),
        ("a.csv", b"a;b\n1;2\n1;2;3\n", "a.csv line 3: 3 values, 2 columns"),
        ("a.txt", b"", "must end in .jsonl"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = put(tmp_path / name, data)
    with pytest.raises(DataError) as caught:
        values(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    for source, message in (
        (str(tmp_path / "no.jsonl"), "no such file"),
        (str(tmp_path), "holds no"),
        (str(tmp_path / "*.csv"), "holds no"),
        ("nosuch://bucket/a.jsonl", "nosuch"),
    ):
        with pytest.raises(DataError, match=message):
            values(source)


def test_a_gzip_bomb_is_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MIN_INFLATED_BYTES", 100_000)
    many_rows = gzip.compress(b'{"a": 1}\n' * 200_000)
    one_row = gzip.compress(b" " * 2_000_000)
    for data in (many_rows, one_row):
        path = put(tmp_path / "bomb.jsonl.gz", data)
        with pytest.raises(DataError, match="grows more than 200 times"):
            values(path)


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 100)
    data = lines([{"a": 1}]) + b'{"a": "' + b"x" * 1000 + b'"}\n' + lines([{"a": 3}])
    rows = list(file_rows(put(tmp_path / "a.jsonl", data)))
    assert [(row.value, row.problem) for row in rows] == [
        ({"a": 1}, None),
        (None, "too_large"),
        ({"a": 3}, None),
    ]
    assert rows[2].place.endswith("a.jsonl line 3")


def test_deep_nesting_costs_one_row(tmp_path: Path) -> None:
    data = b"[" * 100_000 + b"]" * 100_000 + b"\n" + lines([{"a": 1}])
    rows = list(file_rows(put(tmp_path / "a.jsonl", data)))
    assert [(row.value, row.problem) for row in rows] == [(None, "too_deep"), ({"a": 1}, None)]


def test_a_reader_gives_back_the_limit_on_csv_cells(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = [{"a": "x" * 200_000}]
    assert values(put(tmp_path / "a.csv", as_csv(long))) == long
    assert csv.field_size_limit() == before
