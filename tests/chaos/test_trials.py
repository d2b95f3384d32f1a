"""Trials whose workers are killed or fail, through Ray Tune and Ray Train, with a training that is a stub."""

from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import StageFailed
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages import tune
from ray_jobs.stages.trial_table import read_trials
from tests.chaos.stub_pipeline import digest
from tests.chaos.stub_trials import FAILING, KILLED, SOUND, worker

CONFIG = Path(__file__).with_name("stub.yaml")


def prepared(folder: Path, betas: list[float], **changes: object) -> tuple[Config, RunFolder]:
    fields = {
        "storage": folder,
        "search.space": f"{{beta: {{grid: {betas}}}}}",
        "search.num_trials": len(betas),
        "search.max_failures": 1,
        "workers.cpus_per_worker": 0.5,
        **changes,
    }
    config = load_config(CONFIG, [f"{name}={value}" for name, value in fields.items()])
    run = open_run(config.storage, config.name)
    for name in ("train", "heldout"):
        run.write(f"data/{name}.parquet", b"")
    return config, run


def weights_of(beta: float, config: Config) -> str:
    """What an unbroken training comes to."""
    training = config.training.model_copy(update={"beta": beta, "seed": config.seed})
    weights = digest(TrainingSettings.model_validate(training.model_dump()).model_dump_json())
    for step in range(1, training.num_steps + 1):
        weights = digest(weights, step)
    return weights


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_goes_on_from_its_checkpoint_and_a_failing_trial_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "train_worker", worker)
    config, run = prepared(tmp_path, [SOUND, KILLED, FAILING])
    tune.run(config, run)
    trials = {trial.config["beta"]: trial for trial in read_trials(run.path("tune/trials.parquet"))}
    assert {beta: trial.status for beta, trial in trials.items()} == {
        SOUND: "done", KILLED: "done", FAILING: "failed",
    }  # fmt: skip
    assert "loss is not finite" in str(trials[FAILING].error)
    for beta in (SOUND, KILLED):
        state = (Path(str(trials[beta].checkpoint)) / "adapter_model.safetensors").read_text()
        assert weights_of(beta, config) in state
        assert [row["step"] for row in trials[beta].curve] == [5, 10, 15, 20]
    logs = [log.read_text().split("\n") for log in (run.root / "chaos").glob("*.log")]
    counts = sorted(sum(line.startswith("step") for line in log) for log in logs)
    assert counts in ([20, 20], [20, 25])


@pytest.mark.usefixtures("cluster")
def test_when_all_trials_fail_the_stage_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "train_worker", worker)
    config, run = prepared(tmp_path, [FAILING], **{"search.max_failures": 0})
    with pytest.raises(StageFailed, match=r"none of 1 trials can be used: .*loss is not finite"):
        tune.run(config, run)
    assert not run.path("tune/best").exists()
