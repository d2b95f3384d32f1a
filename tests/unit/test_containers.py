"""The container files install what the project says, built alike for every node."""

import re
import tomllib
from pathlib import Path

import pytest

from serving.engine.llamacpp import kernels

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs/containers").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def steps(path: Path) -> list[str]:
    """The instructions, continuation lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [step for step in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines() if step.strip()]


def test_there_is_one_for_cpu_and_one_for_gpu_nodes() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "gpu.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_packages_are_pinned_and_extras_exist(path: Path) -> None:
    installs = [part for step in steps(path) for part in step.split("&&") if "pip install" in part]
    assert len(installs) >= 4
    assert all("-c constraints.txt" in part or "grep '^torch=='" in part for part in installs)
    (extras,) = {match for part in installs for match in re.findall(r'"\.\[(.*?)\]"', part)}
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there(path: Path) -> None:
    for step in steps(path):
        if step.startswith("COPY") and "--from" not in step:
            *sources, _ = [word for word in step.split()[1:] if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), step
            allowed = Path(f"{path}.dockerignore").read_text().splitlines()
            assert all(f"!{Path(source).parts[0]}" in allowed for source in sources), step


def test_every_node_has_the_same_python_to_the_patch_level() -> None:
    named = {base for path in FILES for base in re.findall(r"^FROM (python:\S+)", path.read_text(), re.M)}
    (base,) = named
    assert re.fullmatch(r"python:3\.(11|12)\.\d+-slim-bookworm", base)
    assert all(f"FROM {base}" in path.read_text() for path in FILES)


def test_the_gpu_image_has_the_cuda_that_torch_is_built_for() -> None:
    """As constraints.txt pins it: torch's wheel for Linux brings this CUDA."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert pins["torch"] == "2.13.0", "look up the CUDA of the new torch, and renew the image"
    (base,) = re.findall(r"^FROM nvidia/cuda:(\S+)", FILES[1].read_text(), re.M)
    assert base.startswith("13.0.")
    assert "-devel-" in base


def test_the_manifests_name_the_images() -> None:
    manifests = [(ROOT / "configs/kuberay" / name).read_text() for name in ("rayjob.yaml", "endpoint.yaml")]
    images = [set(re.findall(r"registry\.example\.com/\S+", text)) for text in manifests]
    cpu, gpu = (f"registry.example.com/orpo-on-ray:{kind}" for kind in ("cpu", "gpu"))
    assert images == [{cpu, gpu}, {cpu}]
    assert {cpu, gpu} <= set(re.findall(r"registry\.example\.com/\S+", (ROOT / "cluster.yaml").read_text()))
    (folder,) = re.findall(r"working_dir: (\S+)", manifests[0])
    for path in FILES:
        assert f"COPY --chown=ray configs {folder}/configs" in steps(path)
        assert f"WORKDIR {folder}" in steps(path)


def test_all_cpu_variants_are_built_by_the_same_flags() -> None:
    flags = [re.findall(r'(CXXFLAGS="[^"]*"|CMAKE_ARGS="[^"]*")', " ".join(steps(path))) for path in FILES]
    assert flags[0] == flags[1]
    for flag in ("GGML_NATIVE=OFF", "GGML_BACKEND_DL=ON", "GGML_CPU_ALL_VARIANTS=ON", "GGML_BACKEND_DIR="):
        assert flag in flags[0][1]
    assert "-fno-tree-dse -fno-dse" in flags[0][0]
    assert "-fno-tree-dse -fno-dse" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_our_kernels_are_compiled_into_the_image(path: Path) -> None:
    text = steps(path)
    built = next(at for at, step in enumerate(text) if kernels.COMMAND in step)
    assert built > max(at for at, step in enumerate(text) if "pip install" in step)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_runs_as_root_and_clusters_ask_for_a_token(path: Path) -> None:
    text = steps(path)
    assert "USER ray" in text
    assert text.index("USER ray") > max(at for at, step in enumerate(text) if step.startswith("RUN"))
    assert any("RAY_AUTH_MODE=token" in step for step in text)
