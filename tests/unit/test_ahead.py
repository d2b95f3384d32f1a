"""When work is done ahead of the trials, and what becomes of it, without a cluster."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.runs import RunFolder
from ray_jobs.stages import ahead, begun, cluster, export, generate, judge

ROOT = Path(__file__).parents[2]


def config_of(storage: Path, *changes: str) -> Config:
    fixed = (f"storage={storage}", "workers.gpus_per_worker=1", "workers.cpus_per_worker=1")
    return load_config(ROOT / "tests/chaos/stub.yaml", [*fixed, *changes])


def test_what_fails_ahead_is_left_to_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no answers\ntoday")

    monkeypatch.setattr(export, "base_ahead", fail)
    monkeypatch.setattr(ahead, "room", lambda *_: 1)
    with caplog.at_level(logging.INFO), ahead.base_ahead(config_of(tmp_path), RunFolder(tmp_path)):
        pass
    assert "ahead    stopped, its stage will do it: no answers today" in caplog.messages


def test_what_was_begun_with_other_settings_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    rows = begun.begin_rows(run, "answers", {"seed": "0"})
    assert begun.begun_rows(run, "answers", {"seed": "0"}) == rows
    assert begun.begun_rows(run, "answers", {"seed": "1"}) is None
    assert begun.begun_rows(run, "judgements", {"seed": "0"}) is None


GPU_BOX = cluster.NodeKind(1, cpus=16, gpus=1)
CPU_NODE = cluster.NodeKind(1, cpus=32, gpus=0)
ENGINE_NODE = cluster.NodeKind(2, cpus=32, gpus=0, engine_cores=32)


@pytest.mark.parametrize(
    ("there", "changes", "trials", "expected"),
    [
        ([GPU_BOX], {}, 2, (16 - 2 - 1) // 2),
        ([GPU_BOX], {"engine.actors": 3}, 2, 3),
        ([GPU_BOX], {"workers.cpus_per_worker": 8}, 2, 0),
        ([GPU_BOX], {"workers.gpus_per_worker": 0}, 2, 0),
        ([GPU_BOX, GPU_BOX], {}, 2, 0),
        ([GPU_BOX, CPU_NODE], {}, 2, 0),
        ([GPU_BOX, ENGINE_NODE], {}, 2, 32),
    ],
)
def test_there_is_room_where_no_trial_can_be_kept_waiting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: list[cluster.NodeKind],
    changes: dict[str, object],
    trials: int,
    expected: int,
) -> None:
    monkeypatch.setattr(cluster, "nodes_there", lambda: there)
    monkeypatch.setattr(cluster, "nodes_to_come", list)
    monkeypatch.setattr(ahead, "most_at_once", lambda _: trials)
    wanted = {"engine.actors": 0, "engine.settings.cores": 2, **changes}
    config = config_of(tmp_path, *(f"{name}={value}" for name, value in wanted.items()))
    assert ahead.room(config) == expected


@pytest.mark.parametrize(
    ("cpus", "actors", "blocks", "expected"),
    [
        (8, 0, 40, 0),
        (8, 3, 40, 1),
        (8, 4, 40, 0),
        (8, 0, 3, 1),
        (8, 0, 2, 2),
        (8, 16, 2, 2),
        (8, 0, 0, 4),
        (1, 0, 2, 0),  # not even one engine fits
    ],
)
def test_there_is_room_beside_answers_where_engines_have_no_block_or_are_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, actors: int, blocks: int, expected: int
) -> None:
    monkeypatch.setattr(cluster, "engine_cpus", lambda: cpus)
    config = config_of(tmp_path, f"engine.actors={actors}", "engine.settings.cores=2")
    assert ahead.room_beside_answers(config, blocks) == expected


def test_ctrl_c_ends_the_work_ahead_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()

    def answer_for_ever(*_: Any) -> None:
        begun.set()
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(export, "base_ahead", answer_for_ever)
    monkeypatch.setattr(ahead, "room", lambda *_: 1)

    def interrupted() -> None:
        with ahead.base_ahead(config_of(tmp_path), RunFolder(tmp_path)):
            assert begun.wait(10)
            raise KeyboardInterrupt

    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
    assert "stopped, its stage" not in caplog.text


@pytest.mark.parametrize(("gpus", "expected"), [("1", ["answers"]), ("0", ["answers", "scores"])])
def test_a_judge_on_a_gpu_waits_for_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, expected: list[str]
) -> None:
    made: list[str] = []
    monkeypatch.setattr(export, "base_ahead", lambda *_: None)
    monkeypatch.setattr(generate, "base_ahead", lambda *_: made.append("answers"))
    monkeypatch.setattr(judge, "base_ahead", lambda *_: made.append("scores"))
    ahead.make_base(config_of(tmp_path, f"judge.gpus={gpus}"), RunFolder(tmp_path))
    assert made == expected
