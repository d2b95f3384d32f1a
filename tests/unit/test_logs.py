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


def test_progress_logs_rate_and_time_left_and_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 2.0, 10.0, 10.0, 12.0, 12.0, 12.0]).__next__
    log = logging.getLogger("ray_jobs.test")
    with caplog.at_level(logging.INFO, "ray_jobs.test"):
        progress = Progress(log, "generate", "answers", 40, every_s=5.0, clock=clock)
        progress.add(10)
        progress.add(10, "base")
        progress.add(20)
    assert [record.getMessage() for record in caplog.records] == [
        "generate 20/40 answers · 2.0 answers/s · 10 s left · base",
        "generate 40/40 answers · 3.3 answers/s",
    ]


def test_work_that_shows_no_result_for_long_is_said_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 19.0, 20.0, 20.0, 30.0, 41.0, 41.0, 50.0, 50.0, 99.0]).__next__
    log = logging.getLogger("ray_jobs.test")
    with caplog.at_level(logging.INFO, "ray_jobs.test"):
        progress = Progress(log, "judge", "judgements", 4, quiet_s=20.0, clock=clock)
        for note in ("too early", "7 tokens/s", "too early again", "9 tokens/s"):
            progress.alive(note)
        progress.add(4)
        progress.alive("over")
    assert [record.getMessage() for record in caplog.records] == [
        "judge    0/4 judgements · 7 tokens/s",
        "judge    0/4 judgements · 9 tokens/s",
        "judge    4/4 judgements · 0.1 judgements/s",
    ]


def test_a_sparkline_spans_from_the_lowest_to_the_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([0.0, 7.0, 3.0, float("nan")]) == "▁█▄"
    assert sparkline([9.0, *range(8)], width=8) == "▁▂▃▄▅▆▇█"
