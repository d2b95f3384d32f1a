"""Trials of Ray Tune on a CUDA GPU: side by side, killed, short of memory, with DeepSpeed, as a population.

    pytest tests/integration/orpo/test_gpu_search.py

Needs no hub; skipped where there is no GPU.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.config import Config
from ray_jobs.errors import StageFailed
from ray_jobs.records import as_row
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial
from ray_jobs.stages import tune
from ray_jobs.stages.gpu_share import with_gpu_share
from ray_jobs.tables import PAIR_COLUMNS, write_rows
from tests.integration.orpo import gpu_workers, search_worker
from tests.integration.orpo.test_search import LEARNS, STUCK, prepared, searched
from tests.unit.orpo.tiny import save_tiny_model, text_pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

LEFT_BYTES = 64 * 2**20
"""Of a GPU's memory, what other programs may take while a test runs."""
DEADLINE_S = 30.0
FEW_STEPS = {
    "training.num_steps": 8,
    "training.eval_every_steps": 4,
    "training.checkpoint_every_steps": 4,
    "training.precision": "bf16",
}
Worker = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    from ray_jobs.stages import cluster

    ray.shutdown()
    cluster.connect(cpus_here=gpu_workers.SIDE_BY_SIDE)
    assert ray.cluster_resources().get("GPU"), "Ray finds no GPU"
    yield
    ray.shutdown()


@pytest.fixture
def search(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Config, RunFolder]]:
    """Prepares a search whose workers are `worker`, over learning rates, on pairs that can be learnt."""

    def made(
        worker: Worker, rates: list[float], name: str = "run", **changes: object
    ) -> tuple[Config, RunFolder]:
        monkeypatch.setattr(tune, "train_worker", worker)
        config, run = prepared(tmp_path / name, rates, **{**FEW_STEPS, **changes})
        for split, count, seed in (("train", 40, 0), ("heldout", 9, 1)):
            rows = [as_row(pair) for pair in text_pairs(count, seed)]
            write_rows(run.path(f"data/{split}.parquet"), rows, PAIR_COLUMNS)
        return config, run

    return made


def learned(trial: Trial) -> bool:
    """Whether the held-out likelihood rose from the first evaluation to the last."""
    return trial.status == "done" and trial.curve[-1]["heldout_nll"] < trial.curve[0]["heldout_nll"]


def workers_of(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gpu_workers.lines(run.root / "workers")]


def test_trials_share_a_gpu_and_give_its_memory_back(search: Any) -> None:
    rates = [LEARNS, LEARNS / 2, LEARNS / 4]
    free, total = torch.cuda.mem_get_info()
    config, run = search(gpu_workers.side_by_side, rates, **{"workers.gpus_per_worker": "auto"})
    share = with_gpu_share(config).workers.gpus_per_worker
    assert isinstance(share, float)
    assert 0 < share <= 1 / 3
    trials = searched(config, run)
    assert all(learned(trial) for trial in trials.values())
    workers = workers_of(run)
    assert len({worker["pid"] for worker in workers}) == gpu_workers.SIDE_BY_SIDE
    assert {worker["gpus"] for worker in workers} == {"0"}
    assert {worker["backend"] for worker in workers} == {None}, "a lone worker needs no process group"
    assert all(0 < worker["reserved"] <= share * total for worker in workers)
    deadline = time.monotonic() + DEADLINE_S
    while torch.cuda.mem_get_info()[0] < free - LEFT_BYTES:
        assert time.monotonic() < deadline, f"{free - torch.cuda.mem_get_info()[0]} bytes are not given back"
        time.sleep(0.2)


def test_a_worker_that_takes_no_gpu_trains_on_the_cpu(search: Any) -> None:
    changes = {"workers.gpus_per_worker": 0, "training.precision": "fp32"}
    config, run = search(gpu_workers.noted, [LEARNS], **changes)
    (trial,) = searched(config, run).values()
    assert learned(trial)
    assert [(worker["gpus"], worker["reserved"]) for worker in workers_of(run)] == [("", 0)]


def test_a_killed_worker_goes_on_from_its_checkpoint(search: Any) -> None:
    whole = {"workers.gpus_per_worker": 1, "search.max_failures": 2}
    (straight,) = searched(*search(gpu_workers.noted, [LEARNS], "straight", **whole)).values()
    config, run = search(gpu_workers.killed_once, [LEARNS], **whole)
    (killed,) = searched(config, run).values()
    assert len(gpu_workers.lines(run.root / "attempts")) == 2
    steps = [int(step) for step in gpu_workers.lines(run.root / "steps")]
    assert steps == [4, 8], "it began again at its checkpoint"
    assert learned(killed)
    # FlashAttention adds up the gradient of queries in no fixed order
    assert killed.heldout_loss == pytest.approx(straight.heldout_loss, rel=1e-3)


def test_a_trial_whose_share_is_too_small_fails_in_one_line(search: Any, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "wide", hidden_size=512, intermediate_size=2048, num_hidden_layers=6)
    few = {"workers.gpus_per_worker": 0.0001, "search.max_failures": 0, "model.base": base}
    config, run = search(gpu_workers.noted, [LEARNS], **few)
    with pytest.raises(StageFailed, match=r"none of 1 trials can be used: OutOfMemoryError: CUDA out of"):
        tune.run(config, run)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_a_trial_on_a_gpu(search: Any, stage: int) -> None:
    block = f"{{zero_optimization: {{stage: {stage}}}}}"
    config, run = search(
        gpu_workers.noted, [LEARNS], **{"workers.gpus_per_worker": 1, "training.deepspeed": block}
    )
    (trial,) = searched(config, run).values()
    assert learned(trial)
    (worker,) = workers_of(run)
    assert worker["backend"] == "nccl"


def test_a_population_hands_weights_on(search: Any) -> None:
    changes = {"search.scheduler": "pbt", "training.num_steps": 12, "workers.gpus_per_worker": 0.5}
    every = {"training.eval_every_steps": 2, "training.checkpoint_every_steps": 2}
    config, run = search(search_worker.in_step, [STUCK, LEARNS], **{**changes, **every})
    trials = searched(config, run)
    assert [row["step"] for row in trials[STUCK].curve] == [2, 4, 6, 8, 10, 12]
    group = Path(str(trials[STUCK].checkpoint)).parent.name
    assert "-" in group, "the stuck trial took nothing over"
    assert trials[STUCK].curve[-1]["heldout_nll"] < trials[STUCK].curve[0]["heldout_nll"]
