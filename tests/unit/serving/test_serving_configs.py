"""serve.yaml, the Kubernetes manifest and the settings, as far as they can be checked without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from serving.app import build
from serving.canary import Canary
from serving.cluster_env import CLUSTER_ENV
from serving.deployment import application
from serving.engine import EngineSettings
from serving.http.gate import proxy_middlewares
from serving.settings import GateSettings, ServingSettings
from serving.sizing import scaling

CONFIGS = Path(__file__).parents[3] / "configs"


def manifest() -> dict[str, Any]:
    return dict(yaml.safe_load((CONFIGS / "kuberay" / "endpoint.yaml").read_text(encoding="utf-8")))


def serve_configs() -> list[dict[str, Any]]:
    plain = yaml.safe_load((CONFIGS / "serve.yaml").read_text(encoding="utf-8"))
    return [plain, yaml.safe_load(manifest()["spec"]["serveConfigV2"])]


@pytest.mark.parametrize("config", serve_configs(), ids=["serve.yaml", "RayService"])
def test_serve_and_our_settings_take_it(config: dict[str, Any]) -> None:
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "serving.app:build"
    ServingSettings.model_validate(application.args)
    with pytest.raises(ValidationError, match="replica_count"):
        ServingSettings.model_validate({**application.args, "replica_count": 2})


def pods() -> list[dict[str, Any]]:
    cluster = manifest()["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("pod", pods(), ids=["head", "engines"])
def test_every_pod_has_the_gate_the_keys_and_the_registry(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    gate = f"{proxy_middlewares.__module__}:{proxy_middlewares.__name__}"
    assert CLUSTER_ENV["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == gate
    assert env.items() >= CLUSTER_ENV.items()
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert Path(env["SERVING_API_KEYS_FILE"]).parent == Path(mounts["keys"])
    assert mounts["registry"] == serve_configs()[1]["applications"][0]["args"]["registry"]


def test_a_pod_has_the_cores_of_its_engine_and_there_are_pods_for_all_replicas() -> None:
    args = serve_configs()[1]["applications"][0]["args"]
    (group,) = manifest()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    resources = pods()[1]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    cores = args["engine"]["cores"]
    assert int(resources["limits"]["cpu"]) >= 2 * cores, "of hyper-threaded ones a pod gets half as many"
    assert group["rayStartParams"]["num-cpus"] == str(cores), "one engine in each pod"
    assert (group["minReplicas"], group["maxReplicas"]) == (args["replicas"], args["max_replicas"] + 1)


@pytest.mark.parametrize("name", ["endpoint.yaml", "rayjob.yaml"])
def test_every_pod_has_probes_of_its_own(name: str) -> None:
    """KubeRay's would be commands."""
    spec = yaml.safe_load((CONFIGS / "kuberay" / name).read_text(encoding="utf-8"))["spec"]
    cluster = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            alive, ready = container["livenessProbe"], container["readinessProbe"]
            assert alive["httpGet"] == {"path": "/api/healthz", "port": 52365}
            assert ready["httpGet"]["path"] in ("/api/healthz", "/-/healthz")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_images_have_what_probes_of_older_operators_call(name: str) -> None:
    text = (CONFIGS / "containers" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    assert " wget " in text.rpartition("\nFROM ")[2].replace("\\", " ").replace("\n", " ")


def test_ingresses_are_replaced_by_ones_that_answer_already() -> None:
    bound: Any = application(ServingSettings(engine=EngineSettings(cores=1)), GateSettings())
    assert bound._bound_deployment._deployment_config.max_surge_percent == 100


def test_arguments_of_the_command_line_are_texts() -> None:
    texts = {"replicas": "2", "canary": '{"model": "base", "share": 0.5}', "engine": '{"cores": 2}'}
    settings = ServingSettings.model_validate({**texts, "cors_origins": '["https://app.example"]'})
    assert (settings.replicas, settings.cors_origins) == (2, ("https://app.example",))
    assert settings.canary == Canary(model="base", share=0.5)
    assert settings.engine == EngineSettings(cores=2)
    with pytest.raises(ValidationError, match="canary: Expecting"):
        ServingSettings.model_validate({"canary": '{"model": '})
    with pytest.raises(ValidationError, match=r"engine\.coars"):
        ServingSettings.model_validate({"engine": '{"coars": 2}'})


def test_load_that_lasts_starts_replicas_and_ones_that_idle_long_stop() -> None:
    engine = EngineSettings(cores=2, lanes=2, slots=8)
    assert scaling(ServingSettings(engine=engine)) == {"num_replicas": 1}
    found = scaling(ServingSettings(engine=engine, max_replicas=3, scaling_delay_s=2))["autoscaling_config"]
    assert (found["min_replicas"], found["max_replicas"], found["target_ongoing_requests"]) == (1, 3, 12)
    assert (found["upscale_delay_s"], found["downscale_delay_s"]) == (2, 40)
    assert AutoscalingConfig(**found).look_back_period_s == 2


def test_the_proxies_of_a_cluster_that_serve_starts_know_the_origins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("set_defaults", "_require_champion"):
        monkeypatch.setattr(f"serving.app.{name}", lambda *_: None)
    for name in ("SERVING_CORS_ORIGINS", "SERVING_MAX_INSIDE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    origins = ("https://a.example", "https://b.example")
    build(ServingSettings(cors_origins=origins, max_queued=1))
    assert GateSettings.from_env().cors_origins == origins


def test_a_queue_has_a_place() -> None:
    with pytest.raises(ValidationError, match="max_queued"):
        ServingSettings(max_queued=0)
