"""cluster.yaml's own kinds of nodes on Ray's fake autoscaling cluster, one of them killed while it works."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ray_jobs.config import EngineActors, JobEngineSettings
from ray_jobs.runs import RunFolder
from ray_jobs.stages import cluster
from tests.chaos.results import compare
from tests.chaos.stub import compute_rows, echo_job

ROOT = Path(__file__).parents[2]
HEAD = "ray.head.default"
LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)
"""What the launcher would run and copy: fields that must be there."""
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def autoscaling_config(address: str) -> dict[str, Any]:
    """cluster.yaml's node types, with Ray's provider of nodes that are processes."""
    ours = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    kinds = {
        HEAD if name == ours["head_node_type"] else name: {**kind, "node_config": {}}
        for name, kind in ours["available_node_types"].items()
    }
    return {
        "cluster_name": "fake",
        "max_workers": ours["max_workers"],
        "upscaling_speed": ours["upscaling_speed"],
        "idle_timeout_minutes": 0.25,
        "provider": {
            # By its class: the file of defaults of Ray's own name for it is not in Ray's packages.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": address,
        },
        "available_node_types": kinds,
        "head_node_type": HEAD,
        "auth": {},
        "file_mounts": {},
        **{name: [] for name in LISTS},
    }


def wait_for(what: Callable[[], bool], deadline_s: float, why: Callable[[], str]) -> None:
    end = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


@pytest.fixture
def autoscaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    """The head, which this process is connected to."""
    ray_command = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray_command, "get-auth-token", "--generate"], check=True, capture_output=True)
    import ray
    from ray._private.services import get_node_ip_address

    ray.shutdown()
    port = free_port()
    host = get_node_ip_address()
    address = f"{host}:{port}"
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    (folder / "config.yaml").write_text(json.dumps(autoscaling_config(address)))
    fake = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    line = [
        ray_command, "start", "--head", "--block", f"--port={port}",
        "--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}/t",
        f"--autoscaling-config={folder}/config.yaml",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(
            line, env={**os.environ, **fake}, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
        )
    try:
        wait_for(lambda: answers(host, port), 60, lambda: (folder / "log").read_text()[-3000:])
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv(cluster.CLUSTER_FILE, str(folder / "config.yaml"))
        cluster.connect()
        yield psutil.Process(head.pid)
    finally:
        ray.shutdown()
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        psutil.wait_procs(family, timeout=20)


def answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def alive() -> list[dict[str, float]]:
    """Resources of the nodes besides the head."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
        for resources in nodes
        if "node:__internal_head__" not in resources
    ]


def worker_raylets(head: psutil.Process) -> list[psutil.Process]:
    raylets = [child for child in head.children(recursive=True) if child.name() == "raylet"]
    return sorted(raylets, key=lambda raylet: raylet.create_time())[1:]


def test_stages_size_the_cluster_by_kind_and_a_lost_node_loses_no_row(
    autoscaling: psutil.Process, tmp_path: Path
) -> None:
    kinds = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    engine = kinds["cpu_engine"]
    assert alive() == []
    assert cluster.engine_cpus() == engine["max_workers"] * engine["resources"]["CPU"]
    assert cluster.trial_capacity("GPU") == kinds["gpu_trial"]["max_workers"]
    pool = EngineActors(
        actors=2, rows_per_block=4, settings=JobEngineSettings(cores=engine["resources"]["CPU"])
    )
    rows = [{"id": f"r{number}", "text": "text"} for number in range(200)]
    log = tmp_path / "log"
    seen: list[list[dict[str, float]]] = []

    def kill_a_node() -> None:
        wait_for(lambda: len(alive()) == 2 and len(list(log.iterdir())) > 20, 90, lambda: f"{alive()}")
        seen.append(alive())
        worker_raylets(autoscaling)[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_a_node)
    job = echo_job(log, wait_s=0.1)
    killer.start()
    results = compute_rows(job, rows, tmp_path / "unfinished", pool)
    killer.join()
    assert seen == [[{"CPU": 16.0, "GPU": 0.0}] * 2]
    assert [(result["id"], result["answer"]) for result in results] == [(row["id"], "TEXT") for row in rows]


@pytest.mark.long
def test_a_pipeline_has_trials_on_gpu_nodes_and_engines_on_cpu_nodes(
    autoscaling: psutil.Process, unbroken: Path, tmp_path: Path
) -> None:
    """The reference run's workers and engines, with stubs in place of models."""
    run = RunFolder(tmp_path / "runs/chaos")
    changes = [
        f"storage={tmp_path}/runs", f"registry={tmp_path}/registry", "workers.gpus_per_worker=1",
        "workers.cpus_per_worker=8", "engine.settings.cores=16",
    ]  # fmt: skip
    sets = [part for change in changes for part in ("--set", change)]
    line = [sys.executable, "-m", "tests.chaos.stub_pipeline", str(ROOT / "tests/chaos/stub.yaml"), *sets]
    seen: dict[str, set[tuple[str, int]]] = {}
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)
    while driver.poll() is None:
        for stage, state in (run.states() if (run.root / "state.json").exists() else {}).items():
            if state.status == "running":
                seen.setdefault(stage, set()).update(Counter(map(kind_of, alive())).items())
        time.sleep(0.2)
    assert driver.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    most = {stage: dict(sorted(counts)) for stage, counts in seen.items()}
    assert most["tune"] == {"gpu_trial": 2}
    assert most["generate"]["cpu_engine"] == most["judge"]["cpu_engine"] == 2
    wait_for(lambda: alive() == [], 60, lambda: f"idle nodes are not released: {alive()}")
    assert compare(unbroken, run.root) == []


def kind_of(resources: dict[str, float]) -> str:
    """The node type of cluster.yaml that has these resources."""
    kinds = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    return next(
        name for name, kind in kinds.items()
        if all(kind["resources"].get(what, 0) == number for what, number in resources.items())
    )  # fmt: skip
