"""Trials whose workers are killed or fail, through Ray Tune and Ray Train, with a training that is a stub."""

import shutil
from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import StageFailed
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages import tune
from ray_jobs.stages.base import Stage, run_stage
from ray_jobs.stages.base_model import NOTE
from ray_jobs.stages.trial_table import read_trials
from tests.chaos.disk import make_room, small_disk
from tests.chaos.local_ray import another_cluster, start_ray
from tests.chaos.memory import MIB, limited_group
from tests.chaos.stub_pipeline import digest
from tests.chaos.stub_trials import (
    ALONE,
    BEGUN,
    BULK,
    BULKY,
    FAILING,
    GREEDY,
    GROUP,
    KILLED,
    LATE,
    SOUND,
    worker,
)

CONFIG = Path(__file__).with_name("stub.yaml")


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "train_worker", worker)
    monkeypatch.setattr(tune, "base_of", lambda *_: None)
    monkeypatch.setattr(tune, "check_export_memory", lambda _: None)


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
    run.write_json(NOTE, {"sha256": "0" * 64})
    return config, run


def weights_of(beta: float, config: Config) -> str:
    """What an unbroken training comes to."""
    training = config.training.model_copy(update={"beta": beta, "seed": config.seed})
    weights = digest(TrainingSettings.model_validate(training.model_dump()).model_dump_json())
    for step in range(1, training.num_steps + 1):
        weights = digest(weights, step)
    return weights


def begun(run: RunFolder, beta: float) -> int:
    """How often the trial's training began."""
    return len(run.path(BEGUN.format(beta=beta)).read_text().splitlines())


@pytest.mark.usefixtures("cluster", "stubs")
def test_a_killed_worker_goes_on_from_its_checkpoint_and_a_failing_trial_harms_no_other(
    tmp_path: Path,
) -> None:
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
    assert counts == [20, 20], "also where Ray Train had not listed the killed one's checkpoint yet"
    assert begun(run, FAILING) == 2


@pytest.mark.long
@pytest.mark.usefixtures("cluster", "stubs")
def test_a_search_whose_state_is_lost_trains_nothing_again(tmp_path: Path) -> None:
    config, run = prepared(tmp_path, [SOUND, LATE])
    tune.run(config, run)
    assert (begun(run, SOUND), begun(run, LATE)) == (1, 1), "killed at its end: nothing was left to do"
    before = run.path("tune/best/adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.path("tune/experiment"))
    shutil.rmtree(run.path("tune/best"))
    tune.run(config, run)
    assert (begun(run, SOUND), begun(run, LATE)) == (1, 1)
    assert run.path("tune/best/adapter_model.safetensors").read_bytes() == before


@pytest.mark.long
@pytest.mark.usefixtures("cluster", "stubs")
def test_what_a_killed_group_held_is_freed_beside_another_cluster_on_the_machine(
    tmp_path: Path,
) -> None:
    group = {"training.deepspeed": "{zero_optimization: {stage: 2}}"}  # for which a worker has a group
    config, run = prepared(tmp_path, [ALONE], **{"workers.cpus_per_worker": 2}, **group)
    with another_cluster():
        tune.run(config, run)
    (trial,) = read_trials(run.path("tune/trials.parquet"))
    assert trial.status == "done"
    assert begun(run, ALONE) == 2
    assert weights_of(ALONE, config) in run.path("tune/best/adapter_model.safetensors").read_text()


@pytest.mark.long
@pytest.mark.usefixtures("cluster", "stubs")
def test_a_trial_that_fills_the_memory_is_tried_again_as_often_as_it_may_and_harms_no_other(
    tmp_path: Path,
) -> None:
    config, run = prepared(tmp_path, [SOUND, GREEDY], **{"search.max_failures": 2})
    with limited_group(256 * MIB) as group:
        if group is None:
            pytest.skip("may not make a control group")
        run.write(GROUP, str(group).encode())
        tune.run(config, run)
    trials = {trial.config["beta"]: trial for trial in read_trials(run.path("tune/trials.parquet"))}
    assert {beta: trial.status for beta, trial in trials.items()} == {SOUND: "done", GREEDY: "failed"}
    assert begun(run, GREEDY) == 3
    assert begun(run, SOUND) == 1


@pytest.mark.usefixtures("cluster", "stubs")
def test_when_all_trials_fail_the_stage_fails_with_the_reason(
    tmp_path: Path,
) -> None:
    config, run = prepared(tmp_path, [FAILING], **{"search.max_failures": 0})
    with pytest.raises(StageFailed, match=r"none of 1 trials can be used: .*loss is not finite"):
        tune.run(config, run)
    assert not run.path("tune/best").exists()


@pytest.mark.long
@pytest.mark.usefixtures("cluster", "stubs")
def test_a_search_on_a_full_disk_says_so_and_comes_to_its_end_when_there_is_room(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", f"{2 * BULK}") as disk:
        config, run = prepared(disk, [BULKY], **{"search.max_failures": 0})
        stage = Stage("tune", (), (), ("tune",), tune.run)
        with pytest.raises(StageFailed, match=r"tune: .*No space left on device; make room and run it again"):
            run_stage(stage, config, run)
        make_room(disk)
        start_ray()
        run_stage(stage, config, run)
        (trial,) = read_trials(run.path("tune/trials.parquet"))
        state = (Path(str(trial.checkpoint)) / "adapter_model.safetensors").read_text()
        assert weights_of(BULKY, config) in state
        assert [row["step"] for row in trial.curve] == [5, 10, 15, 20]
