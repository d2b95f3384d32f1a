"""What the command line of a comparison means, and what it refuses before anything is started."""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import compare
from ray_jobs.config import NAME, Config
from ray_jobs.errors import ConfigError
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages.compare import comparison, link_or_copy, read_data, stages
from serving.storage.remote import StorageError

ROWS = [
    {"instruction": f"Question {number}?", "output": f"Answer {number}", "id": f"r{number}"}
    for number in range(12)
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two files that are no models, prompts without and with references, and a config."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(name.encode() * 20)
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "prompts.jsonl").write_text(rows)
    return {name: str(tmp_path / name) for name in ("a.gguf", "b.gguf", "prompts.jsonl")}


def options(*arguments: str) -> argparse.Namespace:
    return compare.parser().parse_args(arguments)


def settings_of(*arguments: str) -> Config:
    return compare.settings(options(*arguments))[0]


def test_models_are_named_by_their_roles(files: dict[str, str]) -> None:
    a, b, prompts = files.values()
    config, given = compare.settings(options(a, b, a, "--prompts", prompts))
    assert list(given.models) == ["base", "candidate", "candidate-2"]
    assert [path.name for path in given.models.values()] == ["a.gguf", "b.gguf", "a.gguf"]
    assert config.verdict.num_candidates == 2
    assert config.name == "compare-a-b-a"
    assert config.judge.model == compare.DEFAULT_JUDGE
    assert given.pairs is None
    assert [stage.name for stage in stages(given)] == list(compare.NAMES)


def model_at(folder: Path, name: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF")
    return str(path)


def test_comparisons_of_exported_models_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every exported file is called model.gguf."""
    one, other, third = (
        model_at(tmp_path / place, "models/candidate/model.gguf")
        for place in ("runs/one", "runs/other", "old/one")
    )
    base = model_at(tmp_path, "runs/one/models/base/model.gguf")
    assert compare.default_name([base, one]) == "compare-one-base-one-candidate"
    assert compare.default_name([one, other]) == "compare-one-candidate-other-candidate"
    twins = compare.default_name([one, third])
    assert re.fullmatch(r"compare-one-candidate-[0-9a-f]{8}-one-candidate-[0-9a-f]{8}", twins)
    monkeypatch.chdir(tmp_path / "runs")
    assert compare.default_name(["one/models/candidate/model.gguf", third]) == twins


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    x, y = (model_at(tmp_path, f"{folder}/chat-Q4_0.gguf") for folder in ("x", "y"))
    assert compare.default_name([x, y]) == "compare-x-chat-Q4_0-y-chat-Q4_0"
    assert compare.default_name([x, x]) == "compare-chat-Q4_0-chat-Q4_0"
    assert compare.default_name(["o/r:a.gguf", "bundled:b"]) == "compare-r-a-bundled-b"


def test_a_name_stays_a_folders_name_whatever_the_models_are_called(tmp_path: Path) -> None:
    long = [model_at(tmp_path, f"{'x' * 60}{number}.gguf") for number in range(3)]
    names = {compare.default_name(long[:2]), compare.default_name(long[:3]), compare.default_name(long[::2])}
    names |= {compare.default_name([model_at(tmp_path, "模型.gguf"), "...gguf"])}
    assert len(names) == 4
    assert all(NAME.fullmatch(name) for name in names)


def test_a_config_gives_its_judge_and_the_command_line_has_the_last_word(
    files: dict[str, str], tmp_path: Path
) -> None:
    a, b, prompts = files.values()
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: other\nmodel: {base: x}\ntraining: {num_steps: 5}\nregistry: r\n"
        "data: {num_prompts: 7, prompts: {source: x.jsonl}, preferences: {source: 'bundled:pairs'}}\n"
        "judge: {model: 'run:base', feedback: false}\nverdict: {min_gain: 0.2}\n"
    )
    given = (a, b, "--config", str(path), "--prompts", prompts, "--set", "verdict.min_gain=0.3")
    config, made = compare.settings(options(*given))
    assert (config.judge.model, config.judge.feedback) == ("run:base", False)
    assert (config.data.prompts.source, config.data.num_prompts) == (prompts, 7)
    assert (config.verdict.min_gain, config.verdict.num_candidates) == (0.3, 1)
    assert made.pairs is not None
    assert made.pairs.source == "bundled:pairs"
    assert settings_of(*given, "--judge", "run:base", "--name", "mine").name == "mine"


def test_prompts_come_once_each_in_an_order_of_the_seed(files: dict[str, str]) -> None:
    a, b, prompts = files.values()
    path = Path(prompts)
    path.write_text(path.read_text() + json.dumps({"instruction": "QUESTION 3?", "id": "again"}) + "\n")
    given = (a, b, "--prompts", prompts, "--set", "data.columns.prompt=instruction")[:4]
    config, made = compare.settings(options(*given, "--set", "data.num_prompts=5"))
    five, pairs, report = read_data(made, config)
    assert (len(five), pairs) == (5, [])
    twelve, _, _ = read_data(made, settings_of(*given))
    assert [row.id for row in twelve[:5]] == [row.id for row in five]
    assert {row.id for row in twelve} == {row["id"] for row in ROWS}
    assert report["prompts"]["rows_in"] == 13


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.gguf", "--prompts", "prompts.jsonl"], "takes two models or more"),
        (["a.gguf", "b.gguf"], "give --prompts"),
        (["a.gguf", "gone.gguf", "--prompts", "prompts.jsonl"], "gone.gguf: no such GGUF file"),
        (["a.gguf", "b.gguf", "--prompts", "gone.jsonl"], "gone.jsonl: no such file"),
        (["a.gguf", "b.gguf", "--prompts", "prompts.jsonl"], "a.gguf: corrupt or truncated GGUF"),
        (
            ["a.gguf", "b.gguf", "--prompts", "prompts.jsonl", "--set", "judge.modle=x"],
            "did you mean 'model'",
        ),
        (["a.gguf", "b.gguf", "--prompts", "prompts.jsonl", "--config", "prompts.jsonl"], "prompts.jsonl"),
    ],
)
def test_bad_input_is_a_line_that_names_it_and_exit_code_2(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.main([*arguments, "--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert not (tmp_path / "runs").exists()


def test_a_comparison_is_json_for_programs(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b, prompts = files.values()
    given = [a, b, "--prompts", prompts, "--json", "--set", f"storage={tmp_path}/runs"]
    monkeypatch.setattr(compare, "plan_lines", lambda *_: ["judge     20 answers"])
    assert compare.main([*given, "--check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"run": "compare-a-b", "plan": {"judge": ["20 answers"]}, "exit_code": 0}
    report = {
        "decision": "promote",
        "reason": "x",
        "mean_difference": None,
        "ci95": None,
        "judge_trust": None,
    }

    def run_owned(config: Config, *_: Any) -> RunFolder:
        folder = open_run(config.storage, config.name)
        folder.write_json("report/report.json", report)
        return folder

    monkeypatch.setattr(compare, "run_owned", run_owned)
    assert compare.main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["decision"], found["exit_code"]) == ("promote", 0)

    def fail(*_: Any) -> None:
        raise StorageError("s3://b: no answer")

    monkeypatch.setattr(compare, "run_owned", fail)
    assert compare.main(given) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {"exit_code": 1, "error": "s3://b: no answer; the same command goes on from here"}


def test_a_model_is_put_whole_and_its_hash_is_an_input(files: dict[str, str], tmp_path: Path) -> None:
    a, b, prompts = files.values()
    config, given = compare.settings(options(a, b, "--prompts", prompts, "--set", f"storage={tmp_path}/runs"))
    folder = open_run(config.storage, config.name)
    target = folder.path("models/base/model.gguf")
    target.parent.mkdir(parents=True)
    link_or_copy(Path(a), target)
    link_or_copy(Path(b), target)
    assert target.read_bytes() == Path(b).read_bytes()
    assert Path(a).read_bytes() == b"a.gguf" * 20
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    before = stages(given)[1].extra_inputs(config)
    Path(a).write_bytes(b"changed")
    assert stages(given)[1].extra_inputs(config)["base"] != before["base"]
    assert comparison([Path(a), Path(b)], None).models["candidate"] == Path(b)


def test_a_link_of_the_hubs_cache_is_followed_to_its_file(tmp_path: Path) -> None:
    """It is a relative one, which leads nowhere from another folder."""
    for folder in ("hub/blobs", "hub/snapshots/1", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "hub/blobs/abc").write_bytes(b"GGUF")
    (tmp_path / "hub/snapshots/1/a.gguf").symlink_to("../../blobs/abc")
    target = tmp_path / "run/model.gguf"
    link_or_copy(tmp_path / "hub/snapshots/1/a.gguf", target)
    assert target.read_bytes() == b"GGUF"
    assert not target.is_symlink()
    assert os.path.samefile(target, tmp_path / "hub/blobs/abc")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"storage: .*model\.gguf"):
        link_or_copy(tmp_path / "gone.gguf", tmp_path / "model.gguf")
