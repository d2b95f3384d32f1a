"""A copy of the project in a fresh folder, in which the README's commands are run."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own files, with their times, so that make finds the environment ready."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """Ray's own files, in a short path for its sockets. A cluster that is long gone is noted in it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        noted = Path(name) / "ray" / "ray_current_cluster"
        noted.parent.mkdir()
        noted.write_text("192.0.2.2:6399")
        yield Path(name)


@pytest.fixture(scope="session")
def environment(ray_folder: Path) -> dict[str, str]:
    """The README's environment: the project's own programs first on the path."""
    bin_folder = Path(sys.executable).parent
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SERVING_"))
    }
    return {
        **variables,
        "PATH": f"{bin_folder}:{variables['PATH']}",
        "VIRTUAL_ENV": str(bin_folder.parent),
        "RAY_TMPDIR": str(ray_folder),
    }


@pytest.fixture(scope="session")
def run(project: Path, environment: dict[str, str]) -> Run:
    """Runs a command line of the README in the copy."""

    def call(line: str, timeout_s: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line],
            cwd=project,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def finished(run: Run) -> subprocess.CompletedProcess[str]:
    """`make run` on the small config, done once for all tests."""
    done = run(f"make run VENV={Path(sys.executable).parents[1]} CONFIG=configs/smoke.yaml")
    assert done.returncode == 0, done.stderr[-8000:]
    return done
