import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    data = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(data, dict)
    return data


def test_ray_accepts_the_cluster_by_its_own_schema(cluster: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_ray_accepts_the_cluster_with_images_too(cluster: dict[str, Any]) -> None:
    """What the comment says to add, by Ray's schema."""
    jsonschema = pytest.importorskip("jsonschema")
    lines = (ROOT / "cluster.yaml").read_text().splitlines()
    added = yaml.safe_load("\n".join(line[3:] for line in lines if line.startswith("#| ")))
    for name, kind in added.pop("available_node_types").items():
        cluster["available_node_types"][name] |= kind
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(cluster | added, schema)
    assert set(added) == {"docker"}


def test_trials_and_engines_have_node_types_that_can_hold_them(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    reference = yaml.safe_load((ROOT / "configs/llama-3.2-1b.yaml").read_text())
    workers, engine = reference["workers"], reference["engine"]["settings"]
    gpu_nodes = [
        node for node in types.values() if node["resources"].get("GPU", 0) >= workers["gpus_per_worker"]
    ]
    assert any(node["resources"]["CPU"] >= workers["cpus_per_worker"] for node in gpu_nodes)
    assert any(
        node["resources"]["CPU"] >= engine["cores"] and "GPU" not in node["resources"]
        for node in types.values()
    )
    assert types[cluster["head_node_type"]]["resources"]["CPU"] == 0
    kept = [node["resources"] for node in types.values() if "engine_cores" in node["resources"]]
    assert [node["engine_cores"] for node in kept] == [node["CPU"] for node in kept] == [16]


def test_a_cluster_without_a_token_is_not_started(cluster: dict[str, Any]) -> None:
    commands = cluster["head_start_ray_commands"]
    assert "auth_token" in commands[0]
    assert "exit 1" in commands[0]
    starts = [line for line in commands + cluster["worker_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)


def test_what_a_job_runs_is_found_in_the_environment(cluster: dict[str, Any], tmp_path: Path) -> None:
    """Ray (2.60) runs a job's command with the PATH of the node's raylet."""
    for line in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
        start = line.partition(" ray start")[0].partition(" && ")[2]
        (tmp_path / ".venv/bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv/bin/python").write_text("#!/bin/sh\necho the environment\n")
        (tmp_path / ".venv/bin/python").chmod(0o755)
        ran = subprocess.run(
            ["bash", "-c", f"{start} bash -c 'python -m ray_jobs.pipeline'"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ran.stdout == "the environment\n"


def test_the_head_is_started_with_a_token_and_refused_with_the_reason_without_one(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    """The launcher stops at the first command that fails."""
    first = cluster["head_start_ray_commands"][0]

    def start() -> subprocess.CompletedProcess[str]:
        env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        return subprocess.run(["bash", "-c", first], env=env, capture_output=True, text=True, check=False)

    refused = start()
    assert refused.returncode == 1
    assert refused.stdout == "no ~/.ray/auth_token; refusing to start an open cluster\n"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("")
    assert start().returncode == 1
    (tmp_path / ".ray/auth_token").write_text("f" * 64)
    assert start().returncode == 0


def test_engines_are_sized_by_nodes_without_gpus() -> None:
    from ray_jobs.stages.cluster import NodeKind, cpus_for_engines

    trial, engine, head = NodeKind(8, 16, 1), NodeKind(4, 16, 0), NodeKind(1, 0, 0)
    assert cpus_for_engines([trial, engine, head]) == 64
    assert cpus_for_engines([trial, head]) == 128
    assert cpus_for_engines([]) == 0
    assert cpus_for_engines([trial, engine, head, NodeKind(2, 16, 0, 16)]) == 32


def test_what_the_autoscaler_may_start_is_read_from_the_launchers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_jobs.stages import cluster as stages

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(stages.CLUSTER_FILE, str(ROOT / "cluster.yaml"))
    assert stages.nodes_to_come() == []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert stages.nodes_to_come() == [
        stages.NodeKind(0, 0, 0), stages.NodeKind(8, 16, 1), stages.NodeKind(4, 16, 0, 16),
    ]  # fmt: skip
    other = tmp_path / "other.yaml"
    other.write_text("name: smoke\n")
    monkeypatch.setenv(stages.CLUSTER_FILE, str(other))
    with pytest.raises(ConfigError, match="is no configuration of a Ray cluster"):
        stages.nodes_to_come()
    monkeypatch.setenv(stages.CLUSTER_FILE, str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        stages.nodes_to_come()
