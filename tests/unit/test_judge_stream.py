"""When answers are judged beside those that are still written, and by how many engines, without a cluster."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import RunConflict
from ray_jobs.records import Answer, Message, Prompt, as_row
from ray_jobs.runs import RunFolder
from ray_jobs.stages import answered, cluster, judge, judge_stream
from ray_jobs.stages.answered import Progress, progress_of
from ray_jobs.stages.blocks import Blocks, Range, name_of
from ray_jobs.stages.judge_rows import FirstLook
from ray_jobs.stages.judge_stream import JudgeStream, judged_beside
from ray_jobs.stages.micro_batches import next_batch, seconds_left
from ray_jobs.tables import PROMPT_COLUMNS, write_rows

ROOT = Path(__file__).parents[2]
NUM_PROMPTS = 40
WAIT_S = 10


def config_of(storage: Path, *changes: str) -> Config:
    fixed = (f"storage={storage}", "engine.rows_per_block=4", "engine.settings.cores=2", "engine.actors=0")
    return load_config(ROOT / "tests/chaos/stub.yaml", [*fixed, *changes])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Forty prompts, on a cluster of four engines of two cores; judges start at once."""
    monkeypatch.setattr(cluster, "engine_cpus", lambda: 8)
    monkeypatch.setattr(judge_stream, "POLL_S", 0.001)
    monkeypatch.setattr(judge_stream, "WORTH_S", 0.0)
    prompts = [Prompt(f"p{number}", "s", (Message("user", "?"),)) for number in range(NUM_PROMPTS)]
    ids = frozenset(prompt.id for prompt in prompts)
    monkeypatch.setattr(judge_stream, "first_look", lambda *_: FirstLook(ids, [], NUM_PROMPTS))
    folder = RunFolder(tmp_path)
    write_rows(folder.path("data/prompts.parquet"), map(as_row, prompts), PROMPT_COLUMNS)
    return folder


class Judged:
    """What is judged, in order: the base, or a micro-batch and by how many engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        monkeypatch.setattr(judge, "base_ahead", lambda *_: self.done.append("base"))
        monkeypatch.setattr(judge, "batch_ahead", self.batch)

    def batch(self, look: FirstLook, config: Config, folder: RunFolder, batch: Range) -> None:
        assert batch in judge.batches_of(config, folder), "it is noted before it is judged"
        self.done.append((batch, config.engine.actors))


def judged_while(
    steps: Sequence[Progress], config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """What is judged where the answers come as told; looked at once a step, and once before the first."""
    judged, stream, told = Judged(monkeypatch), JudgeStream(config, folder), iter([steps[0], *steps])

    def progress(*_: Any) -> Progress:
        if (step := next(told, None)) is not None:
            return step
        stream.end()
        return Progress(NUM_PROMPTS, 0)

    monkeypatch.setattr(judge_stream, "progress_of", progress)
    stream.run()
    return judged.done


def test_without_room_the_last_blocks_share_the_cores_with_judges(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [Progress(0, 10), Progress(8, 8), Progress(24, 4), Progress(28, 3), Progress(36, 1)]
    assert judged_while(steps, config_of(run.root), run, monkeypatch) == [
        (
            (0, 8),
            1,
        ),  # four blocks of rows, both models' answers, for the one engine without a block
        ((8, 32), 3),
    ]


def test_few_engines_leave_room_from_the_beginning_and_judge_the_base_first(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [Progress(0, 10), Progress(1, 9), Progress(4, 9), Progress(4, 8), Progress(40, 0)]
    assert judged_while(steps, config_of(run.root, "engine.actors=3"), run, monkeypatch) == [
        "base",
        ((0, 4), 1),
        ((4, 28), 3),
    ]


def test_answers_behind_one_that_is_long_in_coming_wait_for_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged_while([Progress(0, 10), Progress(0, 1)], config_of(run.root), run, monkeypatch) == []


def test_no_judge_is_started_for_a_few_seconds(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_stream, "WORTH_S", 30.0)
    steps = [Progress(0, 10), Progress(36, 1), Progress(36, 1)]
    assert judged_while(steps, config_of(run.root), run, monkeypatch) == []
    assert seconds_left(60.0, 10, 2) == 15.0
    assert seconds_left(60.0, 10, 10) == float("inf")


def test_a_look_at_few_prompts_takes_more_of_them_at_once(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = FirstLook(frozenset({f"p{number}" for number in range(10)}), [], NUM_PROMPTS)
    monkeypatch.setattr(judge_stream, "first_look", lambda *_: few)
    assert judged_while([Progress(36, 3)], config_of(run.root), run, monkeypatch) == [((0, 32), 1)]


def test_what_was_begun_with_both_models_goes_on_so(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(run.root, "engine.actors=2")
    judge.begin_batch(config, run, (0, 12))
    assert judged_while([Progress(20, 5)], config, run, monkeypatch) == [((12, 20), 2)]


def test_a_batch_goes_on_where_the_one_before_ends() -> None:
    assert next_batch(0, 3, 4, 16) is None
    assert next_batch(0, 40, 4, 16) == (0, 16)
    assert next_batch(16, 22, 4, 16) == (16, 22)
    assert next_batch(40, 40, 4, 16) is None


def test_progress_counts_prompts_that_all_candidates_have_answered(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(model: str, *blocks: Range) -> None:
        folder = answered.unfinished_of(run, model)
        folder.mkdir(parents=True, exist_ok=True)
        for block in blocks:
            (folder / name_of(block)).touch()

    models = ("candidate", "candidate-2")
    assert progress_of(run, models, NUM_PROMPTS, 4) == Progress(0, 20)
    answer("candidate", (0, 4), (8, 12))
    assert progress_of(run, models, NUM_PROMPTS, 4) == Progress(0, 18)
    answer("candidate-2", (0, 4), (4, 8))
    assert progress_of(run, models, NUM_PROMPTS, 4) == Progress(4, 16)


def test_answers_are_read_from_blocks_until_their_file_takes_the_place_of_these(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids(start: int, stop: int) -> list[str]:
        return [row["id"] for row in answered.answer_rows_of(run, "candidate", (start, stop))]

    rows = [as_row(Answer(f"p{number}", "s", "", "", "!", 1, 0, 1, "stop", 0.1)) for number in range(12)]
    folder = answered.unfinished_of(run, "candidate")
    for start, stop in ((0, 4), (4, 5), (5, 8)):
        Blocks(folder).write((start, stop), rows[start:stop], Answer.COLUMNS)
    assert ids(2, 7) == [f"p{number}" for number in range(2, 7)]
    with pytest.raises(RunConflict, match="3 results for rows 5 to 9"):
        ids(5, 9)

    def gone(*_: Any) -> Any:
        write_rows(run.path(answered.ANSWERS.format(model="candidate")), rows, Answer.COLUMNS)
        raise FileNotFoundError

    monkeypatch.setattr(Blocks, "rows", gone)
    assert ids(5, 9) == [f"p{number}" for number in range(5, 9)]


def test_what_a_batch_leaves_is_judged_beside_it_at_the_end(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_stream, "progress_of", lambda *_: Progress(8, 1))
    at_work, rest = threading.Event(), threading.Event()
    judged: list[Any] = []

    def batch(look: FirstLook, config: Config, folder: RunFolder, batch: Range) -> None:
        judged.append((batch, config.engine.actors))
        if batch[1] == NUM_PROMPTS:
            rest.set()
        else:
            at_work.set()
            assert rest.wait(WAIT_S), "the rest waited for the batch"

    monkeypatch.setattr(judge, "batch_ahead", batch)
    with judged_beside(config_of(run.root), run) as start:
        start()
        assert at_work.wait(WAIT_S)
    assert judged == [((0, 8), 3), ((8, NUM_PROMPTS), 0)]


def test_what_fails_beside_is_left_to_its_stage(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(judge_stream, "progress_of", lambda *_: Progress(8, 1))
    failed = threading.Event()

    def fail(*_: Any) -> None:
        failed.set()
        raise OSError("no scores\ntoday")

    monkeypatch.setattr(judge, "batch_ahead", fail)
    with caplog.at_level(logging.INFO), judged_beside(config_of(run.root), run) as start:
        start()
        assert failed.wait(WAIT_S)
    assert "ahead    stopped, its stage will do it: no scores today" in caplog.messages


def test_nothing_is_judged_beside_answers_that_do_not_begin_or_where_it_is_turned_off(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = "engine.actors=1"
    for changes, starts, expected in (
        ([room, "engine.ahead=false"], 1, []),
        ([room], 0, []),
        ([room], 3, ["base"]),
        ([], 3, []),
    ):
        judged = Judged(monkeypatch)
        with judged_beside(config_of(run.root, *changes), run) as start:
            for _ in range(starts):
                start()
        assert judged.done == expected
