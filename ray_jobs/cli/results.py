"""What a command found, as plain data for `--json` and as lines for people."""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError, RunConflict
from ray_jobs.runs import RunFolder, in_store_only
from serving.storage.mirror import open_mirror, pull
from serving.storage.node_cache import VIEWS
from serving.storage.remote import StorageError, absolute, folder_path, is_uri

REPORT = "report/report.json"
SAID = ("decision", "reason", "mean_difference", "ci95", "num_scored_both", "judge_trust")
"""What every report has."""


@dataclass(frozen=True)
class Answer:
    """How a command ended, what it tells people, and the same as data for programs."""

    exit_code: int
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def tell(work: Callable[[], Answer], *, as_json: bool) -> int:
    """Writes a command's answer: its text, or one JSON object with exit code and errors. Gives the code."""
    if not as_json:
        answer = work()
        sys.stdout.write(answer.text)
        return answer.exit_code
    overheard: Any = _Overheard(sys.stderr)
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(overheard):
        answer = work()
    sys.stdout.write(dump({**answer.data, **failure(overheard.errors, answer.exit_code)}))
    return answer.exit_code


def failure(errors: Sequence[str], exit_code: int) -> dict[str, Any]:
    """The part of every JSON object that says how the command ended."""
    return {"exit_code": exit_code} | ({"error": "\n".join(errors)} if errors else {})


class _Overheard:
    """Standard error, passed on; its lines about errors are kept."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.errors: list[str] = []

    def write(self, text: str) -> int:
        if text.startswith("error: "):
            self.errors.append(text.removeprefix("error: ").rstrip())
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def run_root(config: Config, *, with_models: bool = False) -> Path:
    """The folder that a run with this config has, there or not; of one in an object store, a copy to look at.

    Raises ConfigError when the store does not answer.
    """
    if not is_uri(config.storage):
        return folder_path(config.storage).resolve() / config.name
    root = open_mirror(f"{absolute(config.storage)}/{config.name}", VIEWS)
    try:
        pull(root, skip=lambda name: in_store_only(name) or (_is_weights(name) and not with_models))
    except StorageError as error:
        raise ConfigError(f"storage: {error}") from error
    return root


def _is_weights(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors"))


def find_run(target: Path, changes: Sequence[str] = (), *, with_models: bool = False) -> RunFolder:
    """The run folder that a config or a path names. Raises ConfigError when there is none."""
    root = target if target.is_dir() else run_root(load_config(target, changes), with_models=with_models)
    folder = RunFolder(root)
    if not (root / "state.json").is_file():
        raise ConfigError(f"{folder.address}: no run folder")
    return folder


def version() -> str:
    """The installed package's, or that it runs from a clone."""
    import importlib.metadata

    try:
        return importlib.metadata.version("orpo-on-ray")
    except importlib.metadata.PackageNotFoundError:
        return "from a clone, not installed"


def planned(config: Config, plan: str) -> dict[str, Any]:
    """The plan of a run, subject -> its lines, as `--check` prints it."""
    subjects: dict[str, list[str]] = {}
    for line in plan.splitlines():
        subject, _, text = line.partition(" ")
        subjects.setdefault(subject, []).append(text.strip())
    return {"run": config.name, "plan": subjects}


def run_result(config: Config) -> dict[str, Any]:
    """Where the run of a config stands: its stages, and what was decided, as far as it came."""
    folder = RunFolder(run_root(config))
    result: dict[str, Any] = {"run": config.name, "folder": folder.address, "stages": {}}
    for name, state in folder.states().items():
        result["stages"][name] = {"status": state.status, "seconds": state.seconds}
    if folder.path(REPORT).is_file():
        report = folder.read_json(REPORT)
        names = ("decision", "reason", "mean_difference", "ci95", "num_scored_both")
        result |= {name: report.get(name) for name in names}
        result["report"] = f"{folder.address}/report/report.html"
    return result


def report_of(folder: RunFolder) -> dict[str, Any]:
    """A run's report. Raises ConfigError where it has none yet, RunConflict where it is damaged."""
    if not folder.path(REPORT).is_file():
        raise ConfigError(f"{folder.root}: has no report yet; `orpo run` goes on to it")
    report: dict[str, Any] = folder.read_json(REPORT)
    missing = [name for name in SAID if not isinstance(report, dict) or name not in report]
    if missing:
        raise RunConflict(f"{folder.path(REPORT)}: is no report of a run: {missing[0]!r} is missing")
    return report


def report_lines(folder: RunFolder) -> list[str]:
    """A report in a few lines. Raises as `report_of`."""
    from ray_jobs.summary import checks_line, judge_line

    report = report_of(folder)
    return [
        f"run        {folder.root.name}",
        f"decision   {report['decision']}: {report['reason']}",
        f"judge      {judge_line(report)}",
        f"checks     {checks_line(report)}",
        f"report     {folder.address}/report/report.html",
    ]
