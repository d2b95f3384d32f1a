import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_a_cluster_without_a_token_is_not_started(cluster: dict[str, Any]) -> None:
    commands = cluster["head_start_ray_commands"]
    assert "auth_token" in commands[0]
    assert "exit 1" in commands[0]
    starts = [line for line in commands + cluster["worker_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)


def test_engines_are_sized_by_nodes_without_gpus() -> None:
    from ray_jobs.stages.cluster import NodeKind, cpus_for_engines

    trial, engine, head = NodeKind(8, 16, 1), NodeKind(4, 16, 0), NodeKind(1, 0, 0)
    assert cpus_for_engines([trial, engine, head]) == 64
    assert cpus_for_engines([trial, head]) == 128
    assert cpus_for_engines([]) == 0
