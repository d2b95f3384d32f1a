import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.errors import RunConflict
from ray_jobs.stages.block_actor import Growth, Ledger, Room
from ray_jobs.stages.blocks import Blocks, RowJob, cut
from ray_jobs.stages.causes import first_cause
from ray_jobs.stages.engine_rows import Failed, note_of, tasks
from ray_jobs.stages.judge_actor import why_unjudged
from ray_jobs.tables import RowFile, read_rows, same_rows, table_of, write_rows, write_tables

COLUMNS = {"id": "string", "value": "int64"}


def some_rows(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"id": f"r{number}", "value": number} for number in range(start, stop)]


def job(**changes: Any) -> RowJob:
    fields: dict[str, Any] = {
        "stage": "s",
        "what": "results",
        "actor": object,
        "spec": {},
        "columns_in": COLUMNS,
        "columns_out": {"id": "string", "metric": "string", "failure": "string"},
        "key": ("id", "metric"),
        "keys_of": lambda row: [(row["id"], "a"), (row["id"], "b")],
    }
    return RowJob(**{**fields, **changes})


def test_ranges_are_cut_at_multiples_so_that_blocks_stay_the_same() -> None:
    assert cut([(0, 10)], 4) == [(0, 4), (4, 8), (8, 10)]
    assert cut([(3, 9)], 4) == [(3, 4), (4, 8), (8, 9)]
    assert cut([], 4) == []


def test_what_is_missing_are_the_gaps_between_blocks(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path / "blocks")
    assert blocks.missing(10) == [(0, 10)]
    for block in ((0, 4), (5, 6), (8, 10)):
        blocks.write(block, some_rows(*block), COLUMNS)
    (tmp_path / "blocks" / ".rows-000000000004-000000000005.parquet.x1").write_bytes(b"unfinished")
    assert blocks.missing(10) == [(4, 5), (6, 8)]
    assert blocks.missing(12) == [(4, 5), (6, 8), (10, 12)]
    blocks.write((4, 8), some_rows(4, 8), COLUMNS)
    assert blocks.done() == [(0, 4), (4, 8), (8, 10)]
    whole = [row for table in blocks.tables() for row in table.to_pylist()]
    assert whole == some_rows(0, 10)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_block_is_thrown_away(tmp_path: Path, damage: str) -> None:
    blocks = Blocks(tmp_path)
    blocks.write((0, 4), some_rows(0, 4), COLUMNS)
    path = blocks.path((0, 4))
    data = bytearray(path.read_bytes())
    data[12] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:40]), "empty": b""}[damage])
    with pytest.raises(RunConflict, match="cannot be read"):
        list(blocks.tables())
    assert blocks.missing(4) == [(0, 4)]


def test_results_must_be_one_for_each_key() -> None:
    rows = some_rows(0, 2)
    results = [{"id": row["id"], "metric": metric} for metric in "ab" for row in rows]
    ordered = job().in_order(rows, results)
    assert [(result["id"], result["metric"]) for result in ordered] == [
        ("r0", "a"), ("r0", "b"), ("r1", "a"), ("r1", "b"),
    ]  # fmt: skip
    for wrong in (results[:3], [*results, results[0]], [*results[:3], {"id": "r9", "metric": "a"}]):
        with pytest.raises(LookupError):
            job().in_order(rows, wrong)


def test_a_quarantined_row_has_a_result_for_each_key() -> None:
    results = job().quarantined({"id": "r0"}, "engine_died: twice")
    assert results == [{"id": "r0", "metric": metric, "failure": "engine_died"} for metric in "ab"]


@pytest.mark.parametrize(
    ("column", "rows", "says"),
    [
        ("error", ["ok", "engine_error: full"], "1 of 2 results failed: 1 engine_error; for example: full"),
        ("error", ["timeout", "timeout"], "2 of 2 results failed: 2 timeout"),
        ("failure", ["error", "no_score"], "2 of 2 results failed: 1 error, 1 no_score; for example: no"),
        ("failure", ["ok", "ok"], ""),
    ],
)
def test_the_line_about_what_failed_has_a_reason_in_words(
    caplog: pytest.LogCaptureFixture, column: str, rows: list[str], says: str
) -> None:
    columns = {"id": "string", column: "string", "feedback": "string"}
    words = {"error": "\nno", "no_score": "What a nice answer."}
    tables = [
        table_of([{"id": text, column: None if text == "ok" else text, "feedback": words.get(text)}], columns)
        for text in rows
    ]
    failed = Failed(job(why=why_unjudged) if column == "failure" else job())
    assert list(failed.counting(tables)) == tables
    failed.tell(len(rows))
    assert [record.getMessage() for record in caplog.records] == [f"s        {says}"] * bool(says)


def test_tasks_hold_every_range_once_and_are_fine_at_small_numbers() -> None:
    few = cut([(0, 100)], 10)
    assert tasks(few, actors=2) == [[block] for block in few]
    many = cut([(0, 1_000_000)], 16)
    grouped = tasks(many, actors=2)
    assert [block for task in grouped for block in task] == many
    assert len(grouped) == 977


def test_rows_of_a_file_are_read_by_range(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_tables(
        path, [table_of(some_rows(0, 2500), COLUMNS), table_of(some_rows(2500, 2600), COLUMNS)], COLUMNS
    )
    file = RowFile(path)
    assert len(file) == 2600
    for start, stop in ((0, 3), (1020, 1030), (2040, 2600), (500, 2550), (2599, 2600)):
        assert file.rows(start, stop) == some_rows(start, stop)
    write_rows(path, [], COLUMNS)
    assert len(RowFile(path)) == 0
    assert read_rows(path) == []


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunConflict, match=r"x\.parquet: cannot be read"):
        RowFile(tmp_path / "x.parquet")


def test_the_ledger_counts_what_was_begun_and_not_ended() -> None:
    ledger = Ledger()
    assert [ledger.begin("a"), ledger.begin("a"), ledger.begin("b")] == [0, 1, 0]
    ledger.end("a")
    assert ledger.begin("a") == 0


def test_alone_means_that_nothing_else_is_inside() -> None:
    room, inside, worst = Room(), [0], [0]
    lock = threading.Lock()

    def enter(alone: bool) -> None:
        for _ in range(50):
            with room.entered(alone=alone):
                with lock:
                    inside[0] += 1
                    now = inside[0]
                if alone:
                    worst[0] = max(worst[0], now)
                with lock:
                    inside[0] -= 1

    threads = [threading.Thread(target=enter, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert worst == [1]


def test_the_rows_of_an_interrupted_stage_are_known_again(tmp_path: Path) -> None:
    path, same, other = (tmp_path / f"{name}.parquet" for name in ("path", "same", "other"))
    rows = some_rows(0, 2500)
    assert not same_rows(path, same)
    for file in (path, same):
        write_tables(file, [table_of(rows[:1000], COLUMNS), table_of(rows[1000:], COLUMNS)], COLUMNS)
    assert same_rows(path, same)
    write_rows(other, [*rows[:-1], {"id": "q", "value": 0}], COLUMNS)
    assert not same_rows(path, other)
    write_rows(other, rows[:1024], COLUMNS)
    assert not same_rows(path, other)
    path.write_bytes(path.read_bytes()[:50])
    assert not same_rows(path, same)


def test_the_first_cause_is_told_of_what_ray_tells() -> None:
    text = """\x1b[36mray::MapWorker.submit()\x1b[39m (pid=1)
OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

  File "x.py", line 1, in f
    raise ValueError("no")
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `ray.data`."""
    assert first_cause(text) == "OSError: [Errno 28] No space left on device"
    assert first_cause("a\nray_jobs.errors.StageFailed: s: it died\n") == "s: it died"
    assert first_cause("The actor died.\nIts node is gone.\n") == "Its node is gone."
    worker = (
        "Training failed due to worker errors:\n[Rank 0]:\nTraceback:\nray_jobs.x.TrainingDiverged: step 3"
    )
    assert first_cause(worker) == "TrainingDiverged: step 3"
    assert first_cause("") == "failed on the cluster"


def test_the_growth_of_an_engines_totals_adds_up_over_threads() -> None:
    class Work:
        engine = type("Engine", (), {"totals": 0})()

    def metrics() -> Any:
        Work.engine.totals += 10
        return SimpleNamespace(
            answer_tokens=Work.engine.totals, prompt_tokens=2 * Work.engine.totals, cached_tokens=5
        )

    Work.engine.metrics = metrics
    growth = Growth(Work())
    taken = [growth.take() for _ in range(3)]
    assert [one["answer_tokens"] for one in taken] == [10, 10, 10]
    assert [one["cached_tokens"] for one in taken] == [5, 0, 0]
    assert set(Growth(object()).take().values()) == {0}


def test_the_progress_line_tells_what_the_engines_do() -> None:
    totals = Counter(answer_tokens=6000, prompt_tokens=400, cached_tokens=100, failed=1)
    assert note_of(totals, 4.0) == "1,500 tokens/s · 25% of prompts from the cache · 1 failed"
    assert note_of(Counter(), 4.0) == ""
