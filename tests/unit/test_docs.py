"""The documentation's commands are commands, its settings are settings, its data is data."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ray_jobs.cli import main as cli
from ray_jobs.config import Config, load_config
from ray_jobs.data.parse import parse_pair, parse_prompt
from ray_jobs.data.settings import Columns

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMAND = typer.main.get_command(cli.app)
OTHERS = (
    "make ",
    "source ",
    "curl ",
    "mkdir ",
    "ray ",
    "docker ",
    "export ",
    "serve ",
    "tensorboard ",
    "wandb sync ",
    "python -m ",
)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for text in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            yield page.name, text


def command_lines() -> list[tuple[str, str]]:
    joined = [(page, re.sub(r"\\\n\s*", "", text)) for page, text in blocks("bash")]
    return [(page, line) for page, text in joined for line in text.splitlines() if line.strip()]


def orpo_lines() -> list[tuple[str, list[str]]]:
    """Page and arguments of every `orpo` line, also as `python -m ray_jobs` in a job."""
    found = []
    for page, line in command_lines():
        _, is_orpo, rest = line.partition("python -m ray_jobs ")
        if line.startswith("orpo ") or is_orpo:
            found.append((page, shlex.split(rest if is_orpo else line.removeprefix("orpo "))))
    return found


@pytest.mark.parametrize(("page", "arguments"), orpo_lines(), ids=lambda value: " ".join(value)[:60])
def test_every_orpo_line_is_a_command_with_its_options(page: str, arguments: list[str]) -> None:
    context = COMMAND.make_context("orpo", list(arguments), resilient_parsing=True)
    name, command, rest = COMMAND.resolve_command(context, list(arguments))  # type: ignore[attr-defined]
    assert name is not None
    assert command is not None
    command.make_context(name, rest, parent=context)  # raises for an unknown option or a missing argument


def write_own_data(folder: Path) -> None:
    """60 pairs and 40 prompts like the tutorial's."""
    pair, prompt = (json.loads(text) for page, text in blocks("json") if page == "tutorial.md")
    for name, row, number in (("pairs", pair, 60), ("prompts", prompt, 40)):
        lines = [json.dumps({**row, "prompt": " ".join([name] * 40) + f" {n}"}) for n in range(number)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    "arguments", [line for _, line in orpo_lines() if "--check" in line], ids=lambda line: " ".join(line)[:60]
)
def test_every_documented_check_runs(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_own_data(tmp_path)
    if arguments[0] == "compare":
        from ray_jobs import compare_bases

        assert compare_bases.main(arguments[1:]) == 0
    else:
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.output


def test_the_rows_that_the_tutorial_asks_for_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 pairs and 40 prompts make a run of configs/own-data.yaml, whose metric needs no references."""
    from ray_jobs.data.split import split
    from ray_jobs.judging.metrics import outline_of

    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_own_data(tmp_path)
    config = load_config(Path("configs/own-data.yaml"))
    found = split(config.data.model_copy(update={"near_overlap": "off"}), config.seed)
    assert (len(found.train), len(found.heldout), len(found.trust), len(found.prompts)) == (20, 20, 20, 40)
    assert outline_of(config.judge.metrics[0]).required_inputs == ("query",)


def test_every_other_line_is_a_known_program() -> None:
    unknown = [(page, line) for page, line in command_lines() if not line.startswith(("orpo ", *OTHERS))]
    assert unknown == []


def test_files_that_commands_name_are_there() -> None:
    named = {path for _, line in command_lines() for path in re.findall(r"configs/[\w./-]+", line)}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_tutorials_rows_can_be_used() -> None:
    pair, prompt = (json.loads(text) for page, text in blocks("json") if page == "tutorial.md")
    assert parse_pair(pair, Columns()).chosen.startswith("Because")
    assert parse_prompt(prompt, Columns()).messages[0].content == "Why are sunsets red?"


def test_settings_in_the_pages_are_settings() -> None:
    shipped = load_config(ROOT / "configs/smoke.yaml").model_dump(mode="json")
    checked = 0
    for page, text in blocks("yaml"):
        data: dict[str, Any] = yaml.safe_load(text)
        if set(data) <= set(Config.model_fields) and "name" not in data:
            merged = {**shipped, **{key: {**shipped[key], **value} for key, value in data.items()}}
            Config.model_validate_json(json.dumps(merged)), page
            checked += 1
    assert checked >= 2
