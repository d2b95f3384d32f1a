"""Rows through engine actors that are killed for real."""

import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import EngineActors, JobEngineSettings
from ray_jobs.errors import StageFailed
from ray_jobs.logs import Progress
from ray_jobs.stages import engine_rows
from tests.chaos.stub import compute_rows, echo_job

pytestmark = pytest.mark.usefixtures("cluster")

POOL = EngineActors(actors=2, rows_per_block=8, settings=JobEngineSettings(cores=1))


def rows_of(count: int, **texts: str) -> list[dict[str, Any]]:
    """Rows r0, r1, …; `texts` replaces the text of some by ID."""
    return [{"id": f"r{number}", "text": texts.get(f"r{number}", "text")} for number in range(count)]


def begun(log: Path) -> dict[str, list[int]]:
    """Row ID -> the processes in which it was begun."""
    return {path.name: [int(pid) for pid in path.read_text().split()] for path in log.iterdir()}


def test_rows_that_kill_their_actor_are_quarantined_and_the_job_goes_on(tmp_path: Path) -> None:
    rows = rows_of(64, r5="abort", r40="kill")
    results = compute_rows(echo_job(tmp_path / "log"), rows, tmp_path / "unfinished", POOL)
    assert [result["id"] for result in results] == [row["id"] for row in rows]
    lost = {result["id"]: result["error"] for result in results if result["answer"] is None}
    assert lost == dict.fromkeys(
        ("r5", "r40"), "engine_died: the engine's process died 3 times on this row alone"
    )
    pids = begun(tmp_path / "log")
    counts = {row_id: len(set(pids[row_id])) for row_id in pids}
    assert counts["r5"] == counts["r40"] == 4
    assert pids["r41"][-1] in pids["r40"], "the row that killed comes first again"
    assert all(result["answer"] == "TEXT" and result["error"] is None
               for result in results if result["id"] not in lost)  # fmt: skip


def test_a_row_that_raises_is_an_error_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="ray_jobs")
    results = compute_rows(echo_job(tmp_path / "log"), rows_of(16, r3="raise"), tmp_path / "unfinished", POOL)
    assert results[3]["error"] == "row_error: ValueError: a row that cannot be read"
    assert [result["answer"] for result in results].count("TEXT") == 15
    (line,) = [record.getMessage() for record in caplog.records if "16/16 answers" in record.getMessage()]
    assert line.endswith("· 1 failed")
    example = "ValueError: a row that cannot be read"
    assert f"echo     1 of 16 answers failed: 1 row_error; for example: {example}" in [
        record.getMessage() for record in caplog.records
    ]


def test_actors_killed_again_and_again_lose_no_row(tmp_path: Path) -> None:
    rows, log = rows_of(400), tmp_path / "log"
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not ended.is_set() and len(killed) < 5:
            pids = {pid for pids in begun(log).values() for pid in pids} - set(killed)
            for pid in sorted(pids)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            ended.wait(0.5)

    job = echo_job(log, wait_s=0.02)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        results = compute_rows(job, rows, tmp_path / "unfinished", POOL)
    finally:
        ended.set()
        killer.join()
    assert len(killed) >= 3
    assert [(result["id"], result["answer"]) for result in results] == [(row["id"], "TEXT") for row in rows]


def test_a_block_that_takes_long_shows_signs_of_life(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_rows, "Progress", partial(Progress, quiet_s=1.0))
    with caplog.at_level("INFO", logger="ray_jobs"):
        compute_rows(
            echo_job(tmp_path / "log", wait_s=2.0, tokens=4000), rows_of(4), tmp_path / "unfinished", POOL
        )
    lines = [record.getMessage() for record in caplog.records if "0/4 answers" in record.getMessage()]
    assert lines
    assert all("tokens/s" in line for line in lines)


def test_an_engine_that_dies_while_it_starts_fails_the_stage_fast(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"died 5 times while it started"):
        compute_rows(
            echo_job(tmp_path / "log", dies_at_start=True), rows_of(8), tmp_path / "unfinished", POOL
        )


def test_damaged_blocks_are_computed_again(tmp_path: Path) -> None:
    rows, unfinished = rows_of(32), tmp_path / "unfinished"
    whole = compute_rows(echo_job(tmp_path / "log"), rows, unfinished, POOL)
    flipped, truncated = sorted((unfinished / "blocks").iterdir())[:2]
    data = bytearray(flipped.read_bytes())
    data[len(data) // 3] ^= 1
    flipped.write_bytes(data)
    truncated.write_bytes(truncated.read_bytes()[:100])
    again = compute_rows(echo_job(tmp_path / "again"), rows, unfinished, POOL)
    assert again == whole
    assert sorted(begun(tmp_path / "again"), key=lambda name: int(name[1:])) == [f"r{n}" for n in range(16)]
