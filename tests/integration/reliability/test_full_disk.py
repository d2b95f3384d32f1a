"""Rows on a disk that is really full."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import Config, EngineActors, JobEngineSettings, load_config
from ray_jobs.errors import StageFailed
from ray_jobs.runs import RunFolder, write_whole
from ray_jobs.stages.base import Stage, run_stage
from tests.chaos.disk import make_room, small_disk
from tests.chaos.local_ray import start_ray
from tests.chaos.stub import compute_rows, echo_job

CONFIG = Path(__file__).parents[3] / "configs/smoke.yaml"
POOL = EngineActors(actors=2, rows_per_block=4, settings=JobEngineSettings(cores=1))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_a_file_that_does_not_fit_leaves_the_old_one(disk: Path) -> None:
    path = disk / "file"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, bytes(1_000_000))
    assert path.read_bytes() == b"old"
    assert [item.name for item in disk.iterdir()] == ["file"]


@pytest.mark.usefixtures("cluster")
def test_a_stage_on_a_full_disk_says_so_and_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    run = RunFolder(disk / "run")
    noise = random.Random(0)
    rows = [{"id": f"r{number}", "text": noise.randbytes(750).hex()} for number in range(80)]
    log = tmp_path / "log"

    def work(config: Config, folder: RunFolder) -> list[str]:
        results: list[Any] = compute_rows(echo_job(log), rows, folder.path("rows/unfinished"), POOL)
        folder.write_json("rows/answers.json", [[result["id"], result["answer"]] for result in results])
        return ["rows/answers.json"]

    stage = Stage("rows", (), (), ("rows",), work)
    config = load_config(CONFIG)
    with pytest.raises(StageFailed, match=r"rows: .*No space left on device; make room"):
        run_stage(stage, config, run)
    kept = {path.name for path in (disk / "run").rglob("rows-*.parquet")}
    assert 0 < len(kept) < 20
    for file in log.iterdir():
        file.unlink()
    make_room(disk)
    start_ray()
    run_stage(stage, config, run)
    assert run.read_json("rows/answers.json") == [[row["id"], row["text"].upper()] for row in rows]
    assert len(list(log.iterdir())) == 80 - 4 * len(kept)
