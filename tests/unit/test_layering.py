"""Imports run one way, and heavy libraries are imported only where they are used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "accelerate", "datasets", "deepspeed", "flow_judge", "gguf", "llama_cpp", "matplotlib", "openvino_genai",
    "optuna", "pandas", "peft", "pyarrow", "ray", "scipy", "statsmodels", "torch", "transformers", "trl",
    "vllm",
}  # fmt: skip
MAY_IMPORT_RAY = {"serving/app.py", "serving/deployment.py"}
MAY_TAKE_OF_SERVING = (
    "serving.engine",
    "serving.registry",
    "serving.promote",
    "serving.cluster_env",
    "serving.storage",
)
LIGHT_ENTRIES = (
    "ray_jobs.pipeline",
    "ray_jobs.cli.main",
    "ray_jobs.cli.doctor",
    "ray_jobs.command",
    "ray_jobs.config",
    "ray_jobs.plan",
    "serving.engine",
    "serving.registry",
)


def modules() -> list[Path]:
    return sorted(path for name in ("ray_jobs", "serving") for path in (ROOT / name).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_serving_never_imports_ray_jobs() -> None:
    guilty = [relative(path) for path in modules() if relative(path).startswith("serving/")
              and any(name.split(".")[0] == "ray_jobs" for name in imports(path))]  # fmt: skip
    assert guilty == []


def test_ray_jobs_takes_only_the_engine_and_the_registry_of_serving() -> None:
    guilty = [
        (relative(path), name)
        for path in modules()
        if relative(path).startswith("ray_jobs/")
        for name in imports(path)
        if name.split(".")[0] == "serving" and not name.startswith(MAY_TAKE_OF_SERVING)
    ]
    assert guilty == []


def test_only_the_wiring_imports_ray() -> None:
    guilty = [
        relative(path)
        for path in modules()
        if any(name.split(".")[0] == "ray" for name in imports(path))
        and not relative(path).startswith("ray_jobs/stages/")
        and relative(path) not in MAY_IMPORT_RAY
    ]
    assert guilty == []


def test_compute_never_imports_the_wiring_or_the_entries() -> None:
    edges = {"stages", "cli", "command", "pipeline", "tune", "generate", "judge", "promote", "plan"}
    guilty = [
        (relative(path), name)
        for path in modules()
        if relative(path).split("/")[1] in {"data", "orpo", "export", "judging", "verdict", "search"}
        and path.name != "__main__.py"
        for name in imports(path)
        if name.startswith("ray_jobs.") and name.split(".")[1] in edges
    ]
    assert guilty == []


@pytest.mark.parametrize("entry", LIGHT_ENTRIES)
def test_entries_import_nothing_heavy(entry: str) -> None:
    code = f"import sys, {entry}; print(' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_no_module_is_named_after_nothing() -> None:
    vague = {"utils", "helpers", "manager", "common", "misc"}
    assert [relative(path) for path in modules() if path.stem in vague] == []
