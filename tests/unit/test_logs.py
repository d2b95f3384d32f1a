import logging

import pytest

from ray_jobs.logs import Progress, duration, sparkline


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7530, "2 h 05 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Clock:
    """Shows what it is set to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def progress_of(what: str, total: int, clock: Clock) -> Progress:
    log = logging.getLogger("ray_jobs.test")
    return Progress(log, what, what, total, every_s=5.0, quiet_s=20.0, clock=clock)


def test_progress_logs_rate_and_time_left_and_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "ray_jobs.test"):
        progress = progress_of("answers", 40, clock)
        for now_s, count, note in ((60, 10, ""), (62, 2, "too soon"), (70, 8, "base"), (72, 20, "")):
            clock.now_s = 100.0 + now_s
            progress.add(count, note)
    assert [record.getMessage() for record in caplog.records] == [
        "answers  10/40 answers",
        "answers  20/40 answers · 1.0 answers/s · 20 s left · base",
        "answers  40/40 answers · 2.5 answers/s",
    ], "the minute until the first result is no part of it"
    assert progress.elapsed_s == progress.working_s == 72


def test_where_it_is_known_when_work_began_the_first_results_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "ray_jobs.test"):
        progress = progress_of("answers", 40, clock)
        for now_s in (60, 65):
            clock.now_s = 100.0 + now_s
            progress.begin(ago_s=2.0)
        clock.now_s = 168.0
        progress.add(10)
    assert [record.getMessage() for record in caplog.records] == [
        "answers  10/40 answers · 1.0 answers/s · 30 s left"
    ]
    assert (progress.elapsed_s, progress.working_s) == (68, 10)
    early = progress_of("answers", 40, clock)
    early.begin(ago_s=2.0)
    clock.now_s += 1.0
    assert early.working_s == 1.0, "not before it was started"


def test_what_comes_all_at_once_has_the_rate_of_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "ray_jobs.test"):
        progress = progress_of("answers", 4, clock)
        clock.now_s += 2.0
        progress.add(4)
    assert [record.getMessage() for record in caplog.records] == ["answers  4/4 answers · 2.0 answers/s"]


def test_blocks_that_arrive_together_say_nothing_of_a_rate(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "ray_jobs.test"):
        progress = Progress(logging.getLogger("ray_jobs.test"), "a", "a", 24, every_s=0.0, clock=clock)
        for now_s in (8.0, 8.1, 8.2):
            clock.now_s = 100.0 + now_s
            progress.add(8)
    assert [record.getMessage().split(" ", 1)[1].strip() for record in caplog.records] == [
        "8/24 a",
        "16/24 a",
        "24/24 a · 2.9 a/s",
    ]


def test_work_that_shows_no_result_for_long_is_said_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "ray_jobs.test"):
        progress = progress_of("judgements", 4, clock)
        for now_s, note in (
            (19, "too early"),
            (20, "7 tokens/s"),
            (30, "too early again"),
            (41, "9 tokens/s"),
        ):
            clock.now_s = 100.0 + now_s
            progress.alive(note)
        clock.now_s = 150.0
        progress.add(4)
        clock.now_s = 199.0
        progress.alive("over")
    assert [record.getMessage() for record in caplog.records] == [
        "judgements 0/4 judgements · 7 tokens/s",
        "judgements 0/4 judgements · 9 tokens/s",
        "judgements 4/4 judgements · 0.1 judgements/s",
    ]


def test_a_sparkline_spans_from_the_lowest_to_the_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([0.0, 7.0, 3.0, float("nan")]) == "▁█▄"
    assert sparkline([9.0, *range(8)], width=8) == "▁▂▃▄▅▆▇█"
