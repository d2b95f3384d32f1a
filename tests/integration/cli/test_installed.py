"""The package as pip installs it: `orpo` from any folder, with its data files, without the clone."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from serving.engine.llamacpp import kernels

ROOT = Path(__file__).parents[3]
WHAT_IS_THERE = """
import importlib.resources, pkgutil, json, ray_jobs, serving
from ray_jobs.data.bundled.rows import NUM_ROWS, bundled_rows
from ray_jobs.judging.metrics import outline_of
modules = [m.name for p in (ray_jobs, serving) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
templates = importlib.resources.files("ray_jobs.verdict") / "templates"
print(json.dumps({
    "file": ray_jobs.__file__,
    "modules": sorted(modules),
    "templates": sorted(path.name for path in templates.iterdir()),
    "page": (importlib.resources.files("serving.http") / "page.html").is_file(),
    "rows": sum(1 for name in NUM_ROWS for _ in bundled_rows(name)),
    "scores": outline_of("RESPONSE_CORRECTNESS_5POINT").scores,
}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the built wheel; the dependencies are the ones of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("tests/"):
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env"


def call(environment: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_wheel_holds_every_module_and_data_file(environment: Path, tmp_path: Path) -> None:
    done = call(environment, tmp_path, "python", "-c", WHAT_IS_THERE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert str(environment) in found["file"]
    packages = ("ray_jobs", "serving")
    sources = [path.relative_to(ROOT) for name in packages for path in (ROOT / name).rglob("*.py")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in sources} - {*packages}
    assert set(found["modules"]) == names
    assert found["templates"] == sorted(path.name for path in (ROOT / "ray_jobs/verdict/templates").iterdir())
    assert found["page"]
    assert found["rows"] > 1000
    assert len(found["scores"]) == 5


def test_orpo_works_from_any_folder(environment: Path, tmp_path: Path) -> None:
    made = call(environment, tmp_path, "orpo", "init", "local")
    assert made.returncode == 0, made.stderr
    plan = call(environment, tmp_path, "orpo", "run", "configs/local.yaml", "--check")
    assert plan.returncode == 0, plan.stderr
    assert "tune" in plan.stdout
    seen = call(environment, tmp_path, "orpo", "doctor", "--quick", "--json")
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["usable"]
    wrong = call(environment, tmp_path, "orpo", "report", "configs/local.yaml")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs"]


def test_the_kernels_sources_come_along(environment: Path, tmp_path: Path) -> None:
    """All of them: the library that they make is the one of this clone, which is there already."""
    try:
        kernels.check_platform()
    except kernels.KernelsUnfit as error:
        pytest.skip(str(error))
    done = call(environment, tmp_path, "python", "-m", "serving.engine.llamacpp.kernels")
    assert done.returncode == 0, done.stderr
    made = [str(kernels.library_path(each)) for each in kernels.INSTRUCTION_SETS]
    assert done.stdout.split() == [path for path in made if Path(path).exists()] != []


def test_completion_is_offered_for_the_usual_shells(environment: Path, tmp_path: Path) -> None:
    """Whatever shell asks: a container's `sh` is none that can complete."""
    for shell in ("bash", "zsh", "fish"):
        done = call(environment, tmp_path, "orpo", "completion", shell)
        assert done.returncode == 0, done.stderr
        assert f"complete_{shell}" in done.stdout
    wrong = call(environment, tmp_path, "orpo", "completion", "tcsh")
    assert wrong.returncode == 2


def test_bash_completes_commands_and_fields(environment: Path, tmp_path: Path) -> None:
    def offered(*words: str) -> list[str]:
        script = f"""
            source <("{environment}/bin/orpo" completion bash)
            COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
            _orpo_completion "{environment}/bin/orpo"; echo "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout.split()

    assert offered("orpo", "gen") == ["generate"]
    assert "search.num_trials=" in offered("orpo", "run", "--set", "search.num_t")
