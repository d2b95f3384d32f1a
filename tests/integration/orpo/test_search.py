"""Searches with real Ray, real trainings and a tiny model: a population, and trials that diverge."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ray_jobs.config import Config, load_config
from ray_jobs.export.base import default_cache_dir, resolve_base
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.training import train
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.search.trials import Trial, with_overrides
from ray_jobs.stages import tune
from ray_jobs.stages.base_model import NOTE
from ray_jobs.stages.checkpoints import read_note
from ray_jobs.stages.trial_table import read_trials
from tests.chaos.local_ray import start_ray
from tests.integration.orpo import search_worker
from tests.integration.orpo.test_training import adapter_of
from tests.unit.orpo.tiny import save_tiny_model, text_pairs

CONFIG = Path(__file__).parents[2] / "chaos/stub.yaml"
TRAINING = {
    "pairs_per_step": 4,
    "max_pair_tokens": 200,
    "max_batch_tokens": 200,
    "precision": "fp32",
    "compile": "off",
    "lora.rank": 4,
}
STUCK, LEARNS, EXPLODES = 1e-8, 3e-3, 300.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    start_ray()
    yield
    ray.shutdown()


def prepared(folder: Path, rates: list[float], **changes: object) -> tuple[Config, RunFolder]:
    fields = {
        "storage": folder,
        "model.base": save_tiny_model(folder / "model"),
        "search.space.learning_rate": f"{{grid: [{', '.join(f'{rate:.10f}' for rate in rates)}]}}",
        "search.num_trials": len(rates),
        "search.objective": "nll",
        "workers.cpus_per_worker": 1,
        **{f"training.{name}": value for name, value in TRAINING.items()},
        **changes,
    }
    config = load_config(CONFIG, [f"{name}={value}" for name, value in fields.items()])
    run = open_run(config.storage, config.name)
    for name in ("train", "heldout"):
        run.write(f"data/{name}.parquet", b"")
    base = resolve_base(config.model, default_cache_dir())
    run.write_json(NOTE, {"name": base.name, "sha256": base.sha256})
    return config, run


def searched(config: Config, run: RunFolder) -> dict[float, Trial]:
    """The trials by the learning rate that they were drawn with."""
    tune.run(config, run)
    trials = read_trials(run.path("tune/trials.parquet"))
    return dict(zip(config.search.space["learning_rate"].values, trials, strict=True))  # type: ignore[arg-type]


@pytest.mark.usefixtures("cluster")
def test_an_exploding_trial_stops_at_once_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "train_worker", search_worker.alone)
    changes = {"search.max_failures": 2, "training.max_loss_ratio": 1.06}
    config, run = prepared(tmp_path, [LEARNS, EXPLODES], **changes)
    trials = searched(config, run)
    assert (trials[LEARNS].status, trials[EXPLODES].status) == ("done", "failed")
    assert "times the first step's" in str(trials[EXPLODES].error)
    assert str(trials[EXPLODES].error).startswith("TrainingDiverged: step ")
    tried = [file.read_text().split() for file in (run.root / "pids").iterdir()]
    assert [len(pids) for pids in tried] == [1, 1], "neither was tried twice"
    assert run.path("tune/best/adapter_model.safetensors").is_file()
    assert {file.read_text() for file in (run.root / "gpus").iterdir()} == {"''\n"}, "they take none"
    for (pid,) in tried:
        assert " training pairs: 13 used, not used: none\n" in log_of(pid)


def log_of(pid: str) -> str:
    """What a process of Ray's wrote on standard error."""
    import ray

    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    (file,) = folder.glob(f"worker-*-{pid}.err")
    return file.read_text()


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_population_hands_weights_on_and_changes_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_jobs.stages.tune_trial import Pointer, group_name

    monkeypatch.setattr(tune, "train_worker", search_worker.in_step)
    config, run = prepared(
        tmp_path,
        [STUCK, LEARNS],
        **{
            "search.scheduler": "pbt",
            "search.space.beta": "{uniform: [0.1, 0.4]}",
            "training.num_steps": 12,
            "training.eval_every_steps": 2,
            "training.checkpoint_every_steps": 2,
        },
    )
    trials = searched(config, run)
    assert {trial.status for trial in trials.values()} == {"done"}
    assert [row["step"] for row in trials[STUCK].curve] == [2, 4, 6, 8, 10, 12]

    settings, last = trials[STUCK].config, Path(str(trials[STUCK].checkpoint))
    trial_id, dash, _ = last.parent.name.partition("-")
    assert dash, "the stuck trial took nothing over"
    (start,) = [
        folder
        for folder in run.path("tune/trials").glob("*/checkpoint_*")
        if folder.parent.name.partition("-")[0] != trial_id
        and group_name(trial_id, Pointer(folder.parent.name, str(folder)), settings) == last.parent.name
    ]
    known = len(read_note(start))
    assert read_note(last)[:known] == read_note(start), "its curve is the one of its weights"
    training = with_overrides(config.training, {"seed": config.seed})
    again = gone_on(with_overrides(training, settings), config, start, tmp_path / "again")
    assert torch.equal(adapter_of(str(last)), again)

    moves = [json.loads(line) for line in run.path("tune/experiment/pbt_global.txt").read_text().splitlines()]
    *_, donors, changed = next(move for move in moves if move[-1] == settings)
    assert changed["beta"] != donors["beta"]
    unchanged = gone_on(with_overrides(training, donors), config, start, tmp_path / "unchanged")
    assert not torch.equal(again, unchanged)

    pids = [int(pid) for file in (run.root / "pids").iterdir() for pid in file.read_text().split()]
    assert len(pids) >= 3
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/environ").exists() for pid in pids):  # a process gives its GPU memory back
        assert time.monotonic() < deadline, "a worker outlives its trial"
        time.sleep(0.1)


def gone_on(settings: TrainingSettings, config: Config, start: Path, folder: Path) -> torch.Tensor:
    """The adapter of a training in this process that goes on from a checkpoint."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = train(
            settings,
            model_dir=config.model.base,
            train_pairs=text_pairs(13),
            heldout_pairs=text_pairs(7, seed=1),
            output_dir=str(folder),
            on_eval=lambda *_: None,
            resume_from=str(start),
        )
    finally:
        torch.set_num_threads(threads)
    return adapter_of(outcome.checkpoint_dir)
