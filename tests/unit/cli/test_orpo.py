"""`orpo`: each command reaches the function of its module, with its exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ray_jobs.cli import main as cli
from ray_jobs.cli import options
from ray_jobs.command import STAGES
from ray_jobs.errors import ConfigError, RunConflict
from ray_jobs.runs import RunFolder, StageState
from serving.cluster_env import CLUSTER_ENV

CONFIGS = Path(__file__).parents[3] / "configs"
LOCAL = str(CONFIGS / "local.yaml")
REPORT = {
    "decision": "promote",
    "reason": "better",
    "mean_difference": 0.5,
    "ci95": [0.2, 0.8],
    "num_scored_both": 40,
    "judge_trust": {"trusted": True},
    "program_checks": None,
}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was handed on: (stage, argv) for stages, (module, argv, variables) for other programs."""
    seen: list[tuple[Any, ...]] = []

    def stage(name: str | None, argv: list[str]) -> int:
        seen.append((name, argv))
        return 0

    def program(module: str, argv: list[str], variables: Any = None) -> int:
        seen.append((module, argv, variables))
        return 0

    monkeypatch.setattr(cli, "main", stage)
    monkeypatch.setattr(cli, "hand_over", program)
    return seen


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = RunFolder(tmp_path / "runs" / "local")
    folder.set_state("verdict", StageState("done", "", {}, {}, "now", "now", 1.5))
    folder.write_json("report/report.json", REPORT)
    folder.write("report/report.md", b"# The report\n")
    return folder.root


@pytest.mark.parametrize(("name", "stage", "_"), cli.STAGE_COMMANDS)
def test_stage_commands_are_the_modules_commands(
    name: str, stage: str | None, _: str, calls: list[tuple[Any, ...]]
) -> None:
    done = invoke(name, LOCAL, "--force", "judge", "--set", "seed=1", "--set", "name=x", "--verbose")
    assert done.exit_code == 0, done.output
    wanted = [LOCAL, "--verbose", "--force", "judge", "--set", "seed=1", "--set", "name=x"]
    assert calls == [(stage, wanted)]


def test_check_prints_the_plan_and_changes_are_checked_like_the_file() -> None:
    done = invoke("run", LOCAL, "--check", "--set", "search.num_trials=8")
    assert done.exit_code == 0
    assert "8 trials of" in done.output
    wrong = invoke("run", LOCAL, "--check", "--set", "search.num_trails=8")
    assert wrong.exit_code == 2
    assert "search.num_trails: unknown field; did you mean 'num_trials'?" in wrong.output


def test_the_plan_as_json_is_the_plan_by_subject() -> None:
    done = invoke("run", LOCAL, "--check", "--json", "--set", "search.num_trials=8")
    found = json.loads(done.stdout)
    assert (found["run"], found["exit_code"]) == ("local", 0)
    assert found["plan"]["tune"][0].startswith("8 trials of")
    assert found["plan"]["data"][3] == "usable: 1320 of 1320 pairs; 1240 to train on"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("seed=abc", 'seed: must be a valid integer, not "abc"'),
        ("seed=", "seed: must be a valid integer, not null"),
        ("training=3", "training: must be"),
        ("seed.x=3", "--set seed.x=3: seed.x is not a field of a section"),
        ("seed", "--set seed: must have the form dotted.field=value"),
        ("training.lora.rank=[1,2", "--set training.lora.rank=[1,2: line 1: expected"),
        ("tracking.wandb.mode=offline", "tracking.wandb.project: is missing"),
        ("model.base=./nowhere", "./nowhere: no such model folder"),
        ("model.base=nowhere.gguf", "nowhere.gguf: no such file"),
        ("data.preferences.source=./none.jsonl", "./none.jsonl: no such file"),
        ("data.num_prompts=5000", "usable prompts that stand in no pair are too few: data.num_prompts takes"),
        ("data.num_trust_pairs=5000", "are too few: data.num_trust_pairs takes 5000"),
        ("model.gguf=none.gguf", "model.gguf: none.gguf: no such GGUF file"),
        ("judge.model=none.gguf", "judge.model: none.gguf: no such GGUF file"),
        ("judge.adapter=none.gguf", "judge.adapter: none.gguf: no such file"),
        ("judge.metrics=[none.yaml]", "judge.metrics: none.yaml: No such file"),
        ("verdict.metrics=[STYLE]", "verdict.metrics: 'STYLE' is not judged; judged: RESPONSE_CORRECTNESS"),
    ],
)
def test_a_wrong_change_is_one_line(change: str, says: str) -> None:
    done = invoke("run", LOCAL, "--check", "--set", change)
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert says in line


def test_a_data_set_that_is_at_hand_is_looked_at_even_if_the_other_is_not(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"ask": "Why?"}\n{"ask": ""}\n')
    hub = "data.preferences.source=someone/pairs"
    asked = f"data.prompts={{source: {prompts}, columns: {{prompt: ask}}}}"
    metric = "judge.metrics=[configs/metrics/instruction-following.yaml]"
    done = invoke("run", LOCAL, "--check", "--set", hub, "--set", asked, "--set", metric)
    assert "data      usable: 1 of 2 prompts (not: 1 empty_prompt)" in done.output.splitlines()
    wrong = invoke("run", LOCAL, "--check", "--set", hub, "--set", asked.replace(" ask}", " question}"))
    assert (wrong.exit_code, "column 'question' is missing" in wrong.output) == (2, True)


def test_the_version_is_told() -> None:
    done = invoke("--version")
    assert (done.exit_code, done.output.split()[0]) == (0, "orpo")


def test_an_unknown_stage_is_a_usage_error(calls: list[tuple[Any, ...]]) -> None:
    done = invoke("run", LOCAL, "--force", "training")
    assert done.exit_code == 2
    assert "'training' is no stage" in done.output
    assert calls == []


@pytest.mark.parametrize(
    ("command", "forced", "does"),
    [("judge", "tune", "prepare and judge"), ("judge", "prepare", "prepare and judge"),
     ("tune", "judge", "prepare and tune"), ("run", "tune", None), ("judge", "judge", None),
     ("tune", "prepare", None)],
)  # fmt: skip
def test_a_stage_is_redone_only_by_a_command_that_does_it_and_what_stands_on_it(
    monkeypatch: pytest.MonkeyPatch, command: str, forced: str, does: str | None
) -> None:
    """The others would throw away what they do not make again."""
    ran: list[Any] = []
    monkeypatch.setattr("ray_jobs.command.run", lambda config, names, forced: ran.append(forced))
    done = invoke(command, LOCAL, "--force", forced)
    if does is None:
        assert (done.exit_code, ran) == (0, [{forced}])
        return
    assert (done.exit_code, ran) == (2, [])
    assert done.output == (
        f"error: --force {forced}: this command does {does} alone; redo it and what stands on it with "
        f"`orpo run {LOCAL} --force {forced}`\n"
    )


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_json_of_a_command_that_fails_is_an_object_too(check: tuple[str, ...]) -> None:
    done = invoke("run", LOCAL, *check, "--json", "--set", "seed=abc", "--set", "name=/")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["exit_code"]) == (2, 2)
    assert "seed: must be a valid integer" in found["error"]
    assert found["error"].count("\n") == 1
    assert "error: " not in found["error"]
    assert "seed: must be a valid integer" in done.stderr


def test_json_of_a_run_says_where_it_stands(calls: list[tuple[Any, ...]], finished: Path) -> None:
    done = invoke("run", LOCAL, "--json", "--set", f"storage={finished.parent}")
    found = json.loads(done.stdout)
    assert found["decision"] == "promote"
    assert found["stages"] == {"verdict": {"status": "done", "seconds": 1.5}}
    assert found["report"] == str(finished / "report/report.html")
    assert found["exit_code"] == 0


@pytest.mark.parametrize("by", ["config", "folder"])
def test_report_tells_what_a_run_found(finished: Path, by: str) -> None:
    target = [str(finished)] if by == "folder" else [LOCAL, "--set", f"storage={finished.parent}"]
    assert "decision   promote: better" in invoke("report", *target).stdout
    assert "+0.500 (95 % interval +0.200 to +0.800) on 40 prompts" in invoke("report", *target).stdout
    assert invoke("report", *target, "--markdown").stdout == "# The report\n"
    assert json.loads(invoke("report", *target, "--json").stdout) == REPORT


def test_report_of_a_relative_folder_opens_in_a_browser(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(finished.parent)
    done = invoke("report", finished.name, "--open")
    assert (done.exit_code, opened) == (0, [(finished / "report/report.html").as_uri()])


def test_a_missing_run_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["orpo", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.entry()
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"error: {tmp_path}: no run folder\n")
    monkeypatch.setattr("sys.argv", ["orpo", "report", str(tmp_path), "--json"])
    with pytest.raises(SystemExit):
        cli.entry()
    found = json.loads(capsys.readouterr().out)
    assert found == {"exit_code": 2, "error": f"{tmp_path}: no run folder"}


def test_a_run_without_a_report_says_how_to_get_one(finished: Path) -> None:
    (finished / "report/report.json").unlink()
    for option in ((), ("--json",), ("--markdown",)):
        done = invoke("report", str(finished), *option)
        assert isinstance(done.exception, ConfigError)
        assert str(done.exception) == f"{finished}: has no report yet; `orpo run` goes on to it"


@pytest.mark.parametrize("written", [{}, [], "x", {"decision": "promote", "reason": "better"}])
def test_a_report_that_is_none_is_one_line(finished: Path, written: Any) -> None:
    (finished / "report/report.json").write_text(json.dumps(written))
    done = invoke("report", str(finished))
    assert isinstance(done.exception, RunConflict)
    missing = "mean_difference" if isinstance(written, dict) and written else "decision"
    assert str(done.exception).endswith(f"report.json: is no report of a run: {missing!r} is missing")


@pytest.mark.parametrize("target", ["runs/local", "model.gguf", "rollback", "status"])
def test_promote_by_hand_is_the_registrys_command(target: str, calls: list[tuple[Any, ...]]) -> None:
    assert invoke("promote", target, "--registry", "r").exit_code == 0
    assert calls == [("serving.promote", [target, "--registry", "r"], None)]


def test_promote_of_a_config_is_the_stage(
    calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_REGISTRY", "the/endpoints")  # a config has a registry of its own
    assert invoke("promote", LOCAL).exit_code == 0
    assert invoke("promote", LOCAL, "--registry", "a b", "--set", "seed=1").exit_code == 0
    changes = ["--set", "seed=1", "--set", 'registry="a b"']
    assert calls == [("promote", [LOCAL]), ("promote", [LOCAL, "--force", "promote", *changes])]


def test_promote_of_a_config_by_force_takes_its_run_whatever_was_decided(
    calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    place = ["--set", f"storage={tmp_path}"]
    assert invoke("promote", LOCAL, "--force", *place).exit_code == 0
    assert invoke("promote", LOCAL, "--force", *place, "--registry", "r").exit_code == 0
    assert calls == [
        ("serving.promote", [str(tmp_path / "local"), "--registry", registry, "--force"], None)
        for registry in ("registry", "r")
    ]


def test_status_as_json_of_an_empty_registry(tmp_path: Path) -> None:
    done = invoke("promote", "status", "--registry", str(tmp_path), "--json")
    found = {"champion": None, "previous": [], "exit_code": 1}
    assert (done.exit_code, json.loads(done.stdout)) == (1, found)


def test_promote_by_hand_says_who_is_champion_as_json(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.promote.first_words", lambda _: b"{}")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF too")
    place = ("--registry", str(registry), "--json")
    found = json.loads(invoke("promote", str(other), *place).stdout)
    assert (found["champion"]["run"], [one["run"] for one in found["previous"]]) == ("other", ["r"])
    assert json.loads(invoke("promote", "rollback", *place).stdout)["champion"]["run"] == "r"
    done = invoke("promote", str(tmp_path / "none"), *place)
    says = f"{tmp_path / 'none'}: no such run folder or model file"
    assert (done.exit_code, json.loads(done.stdout)) == (2, {"exit_code": 2, "error": says})


def test_compare_takes_a_file_of_bases_or_two_models(calls: list[tuple[Any, ...]]) -> None:
    assert invoke("compare", "bases.yaml", "--json").exit_code == 0
    assert invoke("compare", "a.gguf", "b.gguf", "--prompts", "p.jsonl").exit_code == 0
    assert calls == [
        ("ray_jobs.compare_bases", ["bases.yaml", "--json"], None),
        ("ray_jobs.compare", ["a.gguf", "b.gguf", "--prompts", "p.jsonl"], None),
    ]


def test_serve_without_a_champion_says_how_to_get_one(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    done = invoke("serve", "--registry", str(tmp_path))
    assert done.exit_code == 2
    assert "there is no champion yet" in done.output
    assert calls == []


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    from serving.files import sha256_of
    from serving.registry import Registry

    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    folder = tmp_path / "registry"
    Registry(folder).promote(model, sha256=sha256_of(model), run="r", report=tmp_path / "report.json")
    return folder


def test_serve_hands_over_to_serve_with_the_gate_in_its_proxies(
    calls: list[tuple[Any, ...]], registry: Path
) -> None:
    assert invoke("serve", "--registry", str(registry), "--set", "replicas=2").exit_code == 0
    ((module, argv, variables),) = calls
    assert (module, argv) == ("ray.serve.scripts", ["run", "serving.app:build", "replicas=2"])
    assert variables["SERVING_REGISTRY"] == str(registry)
    assert variables == {**CLUSTER_ENV, "SERVING_REGISTRY": str(registry)}


def test_serve_on_another_port_writes_a_config(calls: list[tuple[Any, ...]], registry: Path) -> None:
    done = invoke("serve", "--registry", str(registry), "--port", "8123", "--set", "engine.cores=2")
    assert done.exit_code == 0
    ((_, (_, path), _),) = calls
    written = yaml.safe_load(Path(path).read_text())
    Path(path).unlink()
    assert written["http_options"] == {"host": "127.0.0.1", "port": 8123}
    (application,) = written["applications"]
    assert application["args"] == {"engine": {"cores": 2}}
    shipped = yaml.safe_load((CONFIGS / "serve.yaml").read_text())["applications"][0]
    assert (application["import_path"], application["route_prefix"]) == (
        shipped["import_path"],
        shipped["route_prefix"],
    )


def test_completion_knows_fields_and_stages() -> None:
    assert options.complete_fields("search.num") == ["search.num_trials="]
    assert "training.lora.rank=" in options.complete_fields("training.lora.")
    assert options.complete_stages("pr") == ["prepare", "promote"]
    assert set(options.complete_stages("")) == set(STAGES)
