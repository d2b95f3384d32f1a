"""Failed trials whose error Ray Tune could not write down do not pass for finished ones."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.errors import StageFailed
from ray_jobs.stages.base import is_full_disk
from ray_jobs.stages.tune import with_errors


class Results(list[Any]):
    """As Ray's: results in order, and how many trials ended in an error."""

    def __init__(self, errors: list[str | None], num_errors: int) -> None:
        super().__init__(SimpleNamespace(error=error) for error in errors)
        self.num_errors = num_errors


def test_errors_that_are_there_are_passed_on(tmp_path: Path) -> None:
    results = Results([None, "loss is not finite"], 1)
    assert with_errors(lambda: results, tmp_path) is results


def test_a_failed_trial_without_its_error_fails_the_stage(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"1 trial\(s\) failed, and the reason was not kept: .*written"):
        with_errors(lambda: Results([None, None], 1), tmp_path)


def test_on_a_full_disk_that_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short() -> Any:
        raise EOFError("Ran out of input")

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(StageFailed) as raised:
        with_errors(cut_short, tmp_path)
    assert is_full_disk(raised.value)
