from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.data.files import files_of
from ray_jobs.errors import ConfigError, RunConflict, StageFailed
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages import base_model, judge, prepare
from ray_jobs.stages.base import Stage, check_unchanged, forget, run_stages

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


def test_an_input_that_is_gone_is_a_change_too(config: Config, folder: RunFolder) -> None:
    """A parameter taken out of the search space, a file taken out of a folder of data."""
    chain, files = Chain(), {"my/a.jsonl": "1", "my/b.jsonl": "2", "judge.model: file": "3"}

    def stages() -> list[Stage]:
        return [replace(stage, extra_inputs=lambda _: dict(files)) for stage in chain.stages()]

    run_stages(stages(), NAMES, config, folder)
    check_unchanged(stages(), config, folder)
    del files["my/b.jsonl"]
    with pytest.raises(RunConflict, match=r"my/b\.jsonl \(was 2, is absent\)"):
        check_unchanged(stages(), config, folder)


def test_what_a_setting_names_is_compared_where_it_is_known(config: Config, folder: RunFolder) -> None:
    """Not of runs that were begun before it was recorded, nor on a machine without the file."""
    chain, contents = Chain(), {"judge.model: file": "1"}

    def stages() -> list[Stage]:
        return [replace(stage, extra_inputs=lambda _: dict(contents)) for stage in chain.stages()]

    run_stages(stages(), NAMES, config, folder)
    contents["judge.adapter: file"] = "2"
    check_unchanged(stages(), config, folder)
    del contents["judge.model: file"]
    check_unchanged(stages(), config, folder)
    contents["judge.model: file"] = "3"
    with pytest.raises(RunConflict, match=r"judge\.model: file \(was 1, is 3\)"):
        check_unchanged(stages(), config, folder)


def test_what_leaves_nothing_behind_is_done_with_the_inputs_of_now(config: Config, folder: RunFolder) -> None:
    """Too few rows, a wrong column: who mends the config needs no --force."""
    chain = Chain()
    stages = [replace(stage, resumes=False) for stage in chain.stages()]
    chain.fails = True
    with pytest.raises(StageFailed):
        run_stages(stages, NAMES, config, folder)
    chain.fails = False
    changed = config.model_copy(update={"seed": 7})
    check_unchanged(stages, changed, folder)
    run_stages(stages, NAMES, changed, folder)
    assert folder.states()["first"].inputs["seed"] == "7"
    assert not folder.path("first/unfinished").exists()
    with pytest.raises(RunConflict, match=r"seed \(was 7, is 0\)"):
        check_unchanged(stages, config, folder)


def test_a_run_notices_another_model_under_the_same_name(config: Config, folder: RunFolder) -> None:
    folder.write_json(base_model.NOTE, {"name": config.model.base, "sha256": "0" * 64})
    with pytest.raises(RunConflict, match=r"is another model than the run was begun with .*model\.revision"):
        base_model.base_of(config, folder)


def test_files_behind_settings_are_inputs(config: Config, tmp_path: Path) -> None:
    """A rubric that was edited, a judge or an adapter that was replaced: no scores of before are taken."""
    metric, model, adapter = (tmp_path / name for name in ("m.yaml", "judge.gguf", "adapter.gguf"))
    rubric = "name: m\ncriteria: Is it right?\nrubric: {1: no, 2: yes}\nrequired_inputs: [query]\n"
    for path in (metric, model, adapter):
        path.write_text(rubric)
    judge_settings = config.judge.model_copy(
        update={"metrics": (str(metric),), "model": str(model), "adapter": str(adapter)}
    )
    given = config.model_copy(update={"judge": judge_settings})
    before = judge.judged_by(given)
    for path, change in ((metric, "Is it right, and short?"), (model, "other"), (adapter, "other")):
        path.write_text(rubric.replace("Is it right?", change))
        after = judge.judged_by(given)
        assert [key for key in before if before[key] != after[key]] == [
            next(
                key
                for key in before
                if key.startswith({metric: "judge.metrics", model: "judge.model"}.get(path, "judge.adapter"))
            )
        ]
        before = after
    metric.write_text("# a comment\n" + metric.read_text())
    assert judge.judged_by(given) == before


def test_a_local_base_is_an_input_by_its_content(config: Config, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(b"one")
    given = config.model_copy(update={"model": config.model.model_copy(update={"base": str(base)})})
    before = prepare.local_files(given)
    assert list(before) == ["model.base: files"]
    base.write_bytes(b"another")
    assert prepare.local_files(given) != before


def test_files_of_folders_and_patterns_are_inputs_too(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.txt", ".DS_Store", "c[1].jsonl"):
        (tmp_path / name).write_text(name)
    assert files_of(str(tmp_path / "a.jsonl")) == [tmp_path / "a.jsonl"]
    assert files_of(str(tmp_path / "*.jsonl")) == [
        tmp_path / name for name in ("a.jsonl", "b.jsonl", "c[1].jsonl")
    ]
    assert len(files_of(str(tmp_path))) == 3
    assert files_of(f"file://{tmp_path}/a.jsonl") == [tmp_path / "a.jsonl"]
    assert files_of(str(tmp_path / "c[1].jsonl")) == [tmp_path / "c[1].jsonl"]
    assert files_of("bundled:pairs") == []
    assert files_of("owner/name") == []
