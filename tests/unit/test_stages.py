from collections.abc import Callable
from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError, RunConflict, StageFailed
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages.base import Stage, check_unchanged, forget, run_stages
from ray_jobs.stages.prepare import files_of

CONFIGS = Path(__file__).parents[2] / "configs"
Work = Callable[[Config, RunFolder], list[str]]


@pytest.fixture
def config() -> Config:
    return load_config(CONFIGS / "local.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return open_run(str(tmp_path), "r")


class Chain:
    """Two stages: `first` writes a file, `second` copies it; every call is noted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.text = "one"
        self.fails = False

    def first(self, config: Config, run: RunFolder) -> list[str]:
        self.calls.append("first")
        if self.fails:
            run.write("first/unfinished", b"kept")
            raise StageFailed("first: broke")
        run.write("first/a.txt", self.text.encode())
        return ["first/a.txt"]

    def second(self, config: Config, run: RunFolder) -> list[str]:
        self.calls.append("second")
        run.write("second/b.txt", run.path("first/a.txt").read_bytes())
        return ["second/b.txt"]

    def stages(self) -> tuple[Stage, Stage]:
        return (
            Stage("first", ("seed", "training"), (), ("first",), self.first),
            Stage("second", ("verdict",), ("first/a.txt",), ("second",), self.second),
        )


NAMES = ("first", "second")


def test_what_is_done_is_skipped(config: Config, folder: RunFolder) -> None:
    chain = Chain()
    run_stages(chain.stages(), NAMES, config, folder)
    run_stages(chain.stages(), NAMES, config, folder)
    assert chain.calls == ["first", "second"]
    assert folder.path("second/b.txt").read_text() == "one"


def test_a_changed_setting_is_refused_by_name_before_anything_runs(config: Config, folder: RunFolder) -> None:
    chain = Chain()
    run_stages(chain.stages(), NAMES, config, folder)
    changed = config.model_copy(update={"training": config.training.model_copy(update={"beta": 0.7})})
    with pytest.raises(RunConflict, match=r"training\.beta \(was 0\.1, is 0\.7\).*--force first"):
        check_unchanged(chain.stages(), changed, folder)
    with pytest.raises(RunConflict, match=r"training\.beta"):
        run_stages(chain.stages(), NAMES, changed, folder)
    assert chain.calls == ["first", "second"]


def test_a_setting_that_no_stage_depends_on_changes_nothing(config: Config, folder: RunFolder) -> None:
    chain = Chain()
    run_stages(chain.stages(), NAMES, config, folder)
    changed = config.model_copy(update={"registry": "elsewhere"})
    run_stages(chain.stages(), NAMES, changed, folder)
    assert chain.calls == ["first", "second"]


def test_damaged_outputs_are_made_again_and_what_stands_on_them_too(
    config: Config, folder: RunFolder
) -> None:
    chain = Chain()
    run_stages(chain.stages(), NAMES, config, folder)
    folder.path("first/a.txt").write_text("damaged")
    chain.text = "two"
    run_stages(chain.stages(), NAMES, config, folder)
    assert chain.calls == ["first", "second"] * 2
    assert folder.path("second/b.txt").read_text() == "two"


def test_an_interrupted_stage_goes_on_with_what_it_finished(config: Config, folder: RunFolder) -> None:
    chain = Chain()
    chain.fails = True
    with pytest.raises(StageFailed):
        run_stages(chain.stages(), NAMES, config, folder)
    assert folder.states()["first"].status == "failed"
    chain.fails = False
    run_stages(chain.stages(), NAMES, config, folder)
    assert folder.path("first/unfinished").read_bytes() == b"kept"
    assert folder.states()["first"].status == "done"


def test_forgetting_a_stage_throws_its_folder_away(config: Config, folder: RunFolder) -> None:
    chain = Chain()
    run_stages(chain.stages(), NAMES, config, folder)
    forget(chain.stages(), folder)
    assert folder.states() == {}
    assert not folder.path("first").exists()
    assert not folder.path("second").exists()


def test_a_stage_without_its_inputs_says_what_is_missing(config: Config, folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"a\.txt is missing.*'second'"):
        run_stages(Chain().stages(), ("second",), config, folder)


def test_files_of_folders_and_patterns_are_inputs_too(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text(name)
    assert files_of(str(tmp_path / "a.jsonl")) == [tmp_path / "a.jsonl"]
    assert files_of(str(tmp_path / "*.jsonl")) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert len(files_of(str(tmp_path))) == 3
    assert files_of("bundled:pairs") == []
    assert files_of("owner/name") == []
