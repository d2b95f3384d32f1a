"""The RayJob asks for what the reference run needs, by KubeRay's field names."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job() -> dict[str, Any]:
    data = yaml.safe_load((ROOT / "configs/kuberay/rayjob.yaml").read_text())
    assert isinstance(data, dict)
    return data


def requests(group: dict[str, Any]) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    found: dict[str, str] = container["resources"]["requests"]
    return found


def test_it_is_the_ray_that_is_pinned(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()


def test_it_runs_a_config_of_the_project_on_storage_that_all_pods_mount(job: dict[str, Any]) -> None:
    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "ray_jobs.pipeline"]
    assert (ROOT / words[3]).is_file()
    cluster = job["spec"]["rayClusterSpec"]
    mounted = {
        mount["mountPath"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    changes = dict(word.split("=") for word in words if "=" in word)
    folders = [changes.pop(name) for name in ("storage", "registry")]
    assert all(value.startswith(tuple(f"{path}/" for path in mounted)) for value in folders)
    assert changes == {}


def test_the_driver_is_told_what_the_groups_may_grow_to(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else engines would not wait for a group that has no pod yet, and settle on those with GPUs."""
    from ray_jobs.stages import cluster

    told = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["ORPO_CLUSTER_FILE"]
    assert told.startswith("/srv/orpo/configs/")
    dockerfile = (ROOT / "configs/containers/cpu.Dockerfile").read_text()
    assert "configs /srv/orpo/configs" in dockerfile
    monkeypatch.setenv("ORPO_CLUSTER_FILE", str(ROOT / told.removeprefix("/srv/orpo/")))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    kinds = []
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        asked = requests(group)
        offered = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        kinds.append(
            cluster.NodeKind(
                group["maxReplicas"],
                int(asked["cpu"]),
                int(asked.get("nvidia.com/gpu", 0)),
                offered.get("engine_cores", 0),
            )
        )
    assert cluster.nodes_to_come() == kinds


def test_trials_and_engines_have_groups_that_can_hold_them_and_shrink_to_none(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    reference = yaml.safe_load((ROOT / "configs/llama-3.2-1b.yaml").read_text())
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    workers = reference["workers"]
    trial, engine = requests(groups["gpu-trial"]), requests(groups["cpu-engine"])
    assert int(trial["nvidia.com/gpu"]) >= workers["gpus_per_worker"] > 0
    assert int(trial["cpu"]) >= workers["cpus_per_worker"]
    assert int(engine["cpu"]) >= reference["engine"]["settings"]["cores"]
    assert "nvidia.com/gpu" not in engine
    offered = json.loads(json.loads(groups["cpu-engine"]["rayStartParams"]["resources"]))
    assert offered == {"engine_cores": int(engine["cpu"])}
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups.values())
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True


def test_nobody_submits_without_a_token(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
