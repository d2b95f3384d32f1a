import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ray_jobs.errors import ConfigError, DataError, ModelError
from ray_jobs.orpo.meter import TrainMeter
from ray_jobs.orpo.metrics import Metrics, TrainingDiverged
from ray_jobs.orpo.packed_trainer import PackedTrainer
from ray_jobs.orpo.settings import LoraSettings, TrainingSettings
from ray_jobs.orpo.trainer import FIRST_LOSS, Job, TrlTrainer
from ray_jobs.orpo.training import TrainOutcome, train
from tests.unit.orpo.tiny import save_tiny_model, text_pairs

ROOT = Path(__file__).parents[3]
SETTINGS = TrainingSettings(
    num_steps=6,
    pairs_per_step=4,
    max_batch_tokens=200,
    max_pair_tokens=200,
    learning_rate=3e-3,
    precision="fp32",
    lora=LoraSettings(rank=4),
    logging_steps=1,
    compile="off",
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class Run:
    """A training with everything that it told."""

    def __init__(
        self, settings: TrainingSettings, model_dir: str, folder: Path, resume_from: str | None = None
    ) -> None:
        self.evaluations: list[tuple[Metrics, str | None]] = []
        self.logs: list[dict[str, float]] = []
        self.outcome: TrainOutcome = train(
            settings,
            model_dir=model_dir,
            train_pairs=text_pairs(13),
            heldout_pairs=text_pairs(7, seed=1),
            output_dir=str(folder),
            on_eval=lambda metrics, checkpoint: self.evaluations.append((metrics, checkpoint)),
            resume_from=resume_from,
            on_log=self.logs.append,
        )

    @property
    def adapter(self) -> torch.Tensor:
        return adapter_of(self.outcome.checkpoint_dir)


def adapter_of(folder: str) -> torch.Tensor:
    from safetensors.torch import load_file

    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def changed(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**(dict(SETTINGS) | changes))


def test_evaluates_and_saves_when_told_and_at_the_end(model_dir: str, tmp_path: Path) -> None:
    settings = changed(eval_at_start=True, eval_every_steps=2, checkpoint_every_steps=4)
    run = Run(settings, model_dir, tmp_path)
    told = [(metrics.step, folder and Path(folder).name) for metrics, folder in run.evaluations]
    assert told == [(0, None), (2, None), (4, "checkpoint-4"), (6, "checkpoint-6")]
    assert run.outcome.metrics == run.evaluations[-1][0]
    assert run.outcome.step_used == "packed"
    last = run.outcome.metrics
    assert last.heldout_loss < run.evaluations[0][0].heldout_loss
    assert (last.padding_share, last.heldout_pairs) == (0.0, 7)
    assert all(isinstance(value, int | float) for value in last.as_row().values())
    assert [log["step"] for log in run.logs if "loss" in log] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_come_with_an_evaluation_whatever_its_own_interval(
    model_dir: str, tmp_path: Path
) -> None:
    run = Run(changed(checkpoint_every_steps=2, eval_every_steps=3), model_dir, tmp_path)
    told = [(metrics.step, folder and Path(folder).name) for metrics, folder in run.evaluations]
    assert told == [(2, "checkpoint-2"), (3, None), (4, "checkpoint-4"), (6, "checkpoint-6")]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_saved_adapter_gives_the_scores_that_were_reported(
    model_dir: str, tmp_path: Path, dropout: float
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ray_jobs.orpo.evaluation import score_pairs
    from ray_jobs.orpo.models import load_tokenizer
    from ray_jobs.orpo.step import enable_packed_step
    from ray_jobs.orpo.tokens import tokenize_pairs

    run = Run(changed(lora=LoraSettings(rank=4, dropout=dropout)), model_dir, tmp_path)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_dir), run.outcome.checkpoint_dir
    )
    enable_packed_step(model.get_base_model())
    pairs = tokenize_pairs(load_tokenizer(model_dir), text_pairs(7, seed=1), SETTINGS).pairs
    figures = score_pairs(model, pairs, max_batch_tokens=200, device=torch.device("cpu")).figures(
        SETTINGS.beta
    )
    assert figures["heldout_loss"] == pytest.approx(run.outcome.metrics.heldout_loss, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_training_equals_an_uninterrupted_one(model_dir: str, tmp_path: Path, dropout: float) -> None:
    settings = changed(checkpoint_every_steps=3, lora=LoraSettings(rank=4, dropout=dropout))
    straight = Run(settings, model_dir, tmp_path / "straight")
    resumed = Run(settings, model_dir, tmp_path / "resumed", str(tmp_path / "straight" / "checkpoint-3"))
    assert [log["step"] for log in resumed.logs if "loss" in log] == [4, 5, 6]
    assert torch.equal(resumed.adapter, straight.adapter)
    assert resumed.outcome.metrics.heldout_loss == straight.outcome.metrics.heldout_loss


@pytest.mark.parametrize("step", ["packed", "trl"])
def test_dropout_changes_what_is_learnt(model_dir: str, tmp_path: Path, step: str) -> None:
    adapters = []
    for number, dropout in enumerate((0.0, 0.5, 0.5)):
        settings = changed(step=step, num_steps=2, lora=LoraSettings(rank=4, dropout=dropout))
        adapters.append(Run(settings, model_dir, tmp_path / str(number)).adapter)
    assert not torch.allclose(adapters[0], adapters[1], rtol=1e-2)
    assert torch.equal(adapters[1], adapters[2])


def test_only_the_dropout_of_adapters_is_switched_on_again() -> None:
    from ray_jobs.orpo.trainer import restore_adapter_dropout
    from tests.unit.orpo.tiny import tiny_llama, with_adapters

    model = with_adapters(tiny_llama(), lora_dropout=0.3)
    model.own_dropout = torch.nn.Dropout(0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    restore_adapter_dropout(model, 0.3)
    found = {
        "lora_dropout" in name: module.p
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert found == {True: 0.3, False: 0}


def test_a_resumed_training_goes_by_what_came_before(model_dir: str, tmp_path: Path) -> None:
    settings = changed(eval_at_start=True, checkpoint_every_steps=3)
    Run(settings, model_dir, tmp_path / "straight")
    start = tmp_path / "straight" / "checkpoint-3"
    resumed = Run(settings, model_dir, tmp_path / "resumed", str(start))
    assert [metrics.step for metrics, _ in resumed.evaluations] == [6], "not the base again"
    first = json.loads((start / FIRST_LOSS).read_bytes())
    assert first > 0
    assert json.loads((tmp_path / "resumed" / "checkpoint-6" / FIRST_LOSS).read_bytes()) == first
    (start / FIRST_LOSS).write_text(json.dumps(first / 100))
    with pytest.raises(TrainingDiverged, match="over 4 times the first step's"):
        Run(settings, model_dir, tmp_path / "diverged", str(start))


def test_trl_step_trains_the_same_adapter(model_dir: str, tmp_path: Path) -> None:
    # TRL averages micro batches; with all pairs of a step in one, both steps are the same arithmetic
    settings = changed(max_batch_tokens=2000, eval_at_start=True)
    packed = Run(settings, model_dir, tmp_path / "packed")
    trl = Run(settings.model_copy(update={"step": "trl"}), model_dir, tmp_path / "trl")
    assert trl.outcome.step_used == "trl"
    ours, theirs = packed.outcome.metrics, trl.outcome.metrics
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
    assert ours.train_margin == pytest.approx(theirs.train_margin, rel=1e-3)
    assert theirs.padding_share is not None
    assert theirs.padding_share > 0
    assert torch.nn.functional.cosine_similarity(packed.adapter, trl.adapter, dim=0) > 0.9999
    # seven held-out pairs in two batches of unlike sizes: each pair weighs the same
    ours, theirs = packed.evaluations[0][0], trl.evaluations[0][0]
    for name in ("loss", "nll", "accuracy", "margin", "log_odds"):
        expected = pytest.approx(getattr(ours, f"heldout_{name}"), rel=1e-4)
        assert getattr(theirs, f"heldout_{name}") == expected, name


def test_trls_step_refuses_pairs_that_workers_cannot_share(model_dir: str) -> None:
    job = Job(changed(pairs_per_step=5), None, [], [], lambda *_: None, None)
    args: Any = SimpleNamespace(world_size=2)
    with pytest.raises(ConfigError, match=r"training\.pairs_per_step: 5 is not a multiple of 2 workers"):
        TrlTrainer(torch.nn.Identity(), args, job, TrainMeter(1.0))


def test_all_layers_are_in_training_mode_in_every_step(
    model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # loaded models and evaluations are in another mode, in which dropout and checkpointing do nothing
    modes: list[bool] = []
    forward_backward = PackedTrainer._forward_backward

    def noted(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        modes.append(all(module.training for module in model.modules()))
        return forward_backward(self, model, *args, **kwargs)

    monkeypatch.setattr(PackedTrainer, "_forward_backward", noted)
    Run(SETTINGS, model_dir, tmp_path / "without")
    Run(changed(eval_at_start=True, eval_every_steps=2), model_dir, tmp_path / "with")
    assert len(modes) >= 12
    assert all(modes)


def test_every_step_is_packed_once(model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Any] = []
    pack_step = PackedTrainer._pack
    monkeypatch.setattr(
        PackedTrainer, "_pack", lambda self, plan: (packed.append(plan), pack_step(self, plan))[1]
    )
    Run(changed(checkpoint_every_steps=3), model_dir, tmp_path / "straight")
    assert len(packed) == SETTINGS.num_steps
    packed.clear()
    Run(SETTINGS, model_dir, tmp_path / "resumed", str(tmp_path / "straight" / "checkpoint-3"))
    assert len(packed) == 3


def test_exploding_training_stops(model_dir: str, tmp_path: Path) -> None:
    settings = changed(lora=None, learning_rate=30.0, warmup_share=0.0)
    with pytest.raises(TrainingDiverged, match=r"step \d+: loss .* is over 4 times the first step's"):
        Run(settings, model_dir, tmp_path)


@pytest.mark.parametrize("step", ["packed", "trl"])
def test_nan_stops_the_training_before_the_first_update(tmp_path: Path, step: str) -> None:
    from tests.unit.orpo.tiny import tiny_llama, tiny_tokenizer

    model = tiny_llama()
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(TrainingDiverged, match="step 1: loss, nll, margin not finite"):
        Run(changed(step=step), str(tmp_path / "model"), tmp_path / "out")


def test_unverified_architecture_falls_back_to_trl(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import StableLmConfig, StableLmForCausalLM

    from ray_jobs.orpo.models import load_tokenizer
    from ray_jobs.orpo.tokens import tokenize_pairs
    from ray_jobs.orpo.training import build_trainer
    from tests.unit.orpo.tiny import tiny_tokenizer

    config = StableLmConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=6,
    )
    StableLmForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model_dir = str(tmp_path / "model")
    run = Run(changed(num_steps=1), model_dir, tmp_path / "out")
    assert run.outcome.step_used == "trl"
    assert "stablelm models are not among the verified" in caplog.text
    tokenizer = load_tokenizer(model_dir)
    pairs = tokenize_pairs(tokenizer, text_pairs(13), SETTINGS).pairs
    job = Job(SETTINGS, tokenizer, pairs, pairs, lambda *_: None, None)
    trainer, _ = build_trainer(job, model_dir, str(tmp_path / "again"))
    batch, accumulated = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
    assert batch * accumulated == SETTINGS.pairs_per_step


def test_whole_model_training(
    model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray_jobs.orpo.models.multiplies_bf16", lambda _: False)
    run = Run(changed(lora=None, precision="bf16", eval_at_start=True), model_dir, tmp_path)
    assert run.evaluations[-1][0].heldout_loss < run.evaluations[0][0].heldout_loss
    assert (Path(run.outcome.checkpoint_dir) / "model.safetensors").is_file()
    assert "training.precision: bf16 is emulated here" in caplog.text


def test_folders_with_code_or_pickles_are_refused(model_dir: str, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "code")
    config = json.loads((tmp_path / "code" / "config.json").read_text())
    (tmp_path / "code" / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}})
    )
    with pytest.raises(ModelError, match="auto_map"):
        Run(SETTINGS, str(tmp_path / "code"), tmp_path / "out")
    shutil.copytree(model_dir, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled"):
        Run(SETTINGS, str(tmp_path / "pickled"), tmp_path / "out")


def test_no_usable_pairs_is_an_error_that_says_why(model_dir: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable training pairs.*too_long"):
        Run(changed(max_pair_tokens=16), model_dir, tmp_path)


def run_workers(
    num_workers: int,
    settings: dict[str, Any],
    model_dir: str,
    folder: Path,
    resume_from: str | None = None,
) -> list[list[dict[str, Any]]]:
    """Train in separate processes over gloo; returns the evaluations that each was told."""
    port = _free_port()
    processes = []
    folder.mkdir()
    for rank in range(num_workers):
        job = {
            "num_workers": num_workers,
            "settings": settings,
            "model_dir": model_dir,
            "num_pairs": 13,
            "output_dir": str(folder / "out"),
            "log": str(folder / f"{rank}.jsonl"),
            "resume_from": resume_from,
        }
        address = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": num_workers,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = (
            os.environ | {name: str(value) for name, value in address.items()} | {"OMP_NUM_THREADS": "1"}
        )
        command = [sys.executable, "-m", "tests.integration.orpo.worker", json.dumps(job)]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * num_workers, "\n".join(
        error[-3000:] for error in errors
    )
    return [
        [json.loads(line) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]
        for rank in range(num_workers)
    ]


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


PLAIN = json.loads(SETTINGS.model_dump_json()) | {"num_steps": 4, "checkpoint_every_steps": 2}


@pytest.fixture(scope="module")
def two_workers(model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return run_workers(2, PLAIN, model_dir, tmp_path_factory.mktemp("two") / "run")


def test_two_workers_equal_one_with_twice_the_pairs(
    two_workers: list[list[dict[str, Any]]], model_dir: str, tmp_path: Path
) -> None:
    settings = TrainingSettings.model_validate_json(json.dumps(PLAIN))
    one = Run(settings, model_dir, tmp_path)
    alone = one.outcome.metrics.as_row()
    keys = ("heldout_loss", "heldout_nll", "heldout_margin", "heldout_accuracy", "train_loss", "train_nll")
    for key in (*keys, "grad_norm"):
        assert two_workers[0][-1][key] == pytest.approx(alone[key], rel=1e-4), key
        assert two_workers[1][-1][key] == two_workers[0][-1][key], key
    assert [worker[-1]["checkpoint"] is not None for worker in two_workers] == [True, False]
    together = adapter_of(two_workers[0][-1]["checkpoint"])
    assert torch.nn.functional.cosine_similarity(one.adapter, together, dim=0) > 0.9999


@pytest.mark.long
def test_workers_with_dropout_go_on_from_what_the_first_one_left(model_dir: str, tmp_path: Path) -> None:
    lora = {"rank": 4, "dropout": 0.3}
    settings = PLAIN | {"checkpoint_every_steps": 2, "lora": lora}
    straight = run_workers(2, settings, model_dir, tmp_path / "straight")
    start = tmp_path / "straight" / "out" / "checkpoint-2"
    for state in start.glob("rng_state_*"):
        state.unlink()  # of the others only the first worker's folder is kept
    resumed = run_workers(2, settings, model_dir, tmp_path / "resumed", str(start))
    ends = [adapter_of(workers[0][-1]["checkpoint"]) for workers in (straight, resumed)]
    assert torch.equal(*ends)


@pytest.mark.skipif(
    not (shutil.which("c++") or os.environ.get("CXX")),
    reason="DeepSpeed builds its CPU operations when first used (a minute), which takes a C++ compiler",
)
@pytest.mark.parametrize(
    "zero",
    [
        pytest.param({"stage": 2}, marks=pytest.mark.long),
        {"stage": 3},
        pytest.param(
            {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
            marks=pytest.mark.long,
        ),
    ],
    ids=["zero-2", "zero-3", "zero-3-offloaded"],
)
def test_deepspeed_equals_plain_data_parallel_and_goes_on_from_its_shards(
    two_workers: list[list[dict[str, Any]]], model_dir: str, tmp_path: Path, zero: dict[str, Any]
) -> None:
    sharded = PLAIN | {"deepspeed": {"zero_optimization": zero}, "checkpoint_every_steps": 2}
    straight = run_workers(2, sharded, model_dir, tmp_path / "zero")
    for key in ("heldout_loss", "heldout_margin", "train_loss"):
        assert straight[0][-1][key] == pytest.approx(two_workers[0][-1][key], rel=1e-3), key
    assert all(worker[-1]["checkpoint"] for worker in straight), "every worker holds a shard"
    start = tmp_path / "zero" / "out" / "checkpoint-2"
    resumed = run_workers(2, sharded, model_dir, tmp_path / "resumed", resume_from=str(start))
    for key in ("heldout_loss", "heldout_nll", "heldout_margin"):
        assert resumed[0][-1][key] == pytest.approx(straight[0][-1][key], rel=1e-6), key


def test_figures_reach_tensorboard_and_mlflow(
    model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `tracking` is not installed")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    settings = changed(tensorboard=True, mlflow=True, logging_steps=2, eval_every_steps=3)
    run = Run(settings, model_dir, tmp_path / "out")
    told = {log["step"]: log for log in run.logs if "loss" in log}
    assert list(told) == [2, 4, 6]

    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    client = mlflow.MlflowClient(tracking_uri=uri)
    (logged,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    for name in (
        "loss",
        "train_nll",
        "train_accuracy",
        "train_margin",
        "train_log_odds",
        "tokens_per_s",
        "mfu",
    ):
        points = events.Scalars(f"train/{name}")
        assert [point.step for point in points] == [2, 4, 6], name
        assert points[-1].value == pytest.approx(told[6][name], rel=1e-6)
        assert client.get_metric_history(logged.info.run_id, name)[-1].value == pytest.approx(told[6][name])
    assert [point.value for point in events.Scalars("train/padding_share")] == [0.0, 0.0, 0.0]
    assert [point.step for point in events.Scalars("eval/accuracy")] == [3, 6]


def test_a_changed_learning_rate_is_taken_up_where_the_schedule_is(model_dir: str, tmp_path: Path) -> None:
    """What a population does: another trial's weights, optimiser and place, its own settings."""
    first = changed(checkpoint_every_steps=3, lr_schedule="cosine", weight_decay=0.1)
    Run(first, model_dir, tmp_path / "first")
    second = first.model_copy(update={"learning_rate": 1e-4, "weight_decay": 0.0})
    straight = Run(second, model_dir, tmp_path / "straight")
    start = str(tmp_path / "first" / "checkpoint-3")
    resumed = Run(second, model_dir, tmp_path / "resumed", start)

    def rates(run: Run) -> dict[float, float]:
        return {log["step"]: log["learning_rate"] for log in run.logs if "loss" in log}

    assert rates(resumed) == {step: rate for step, rate in rates(straight).items() if step > 3}
    assert straight.outcome.metrics.learning_rate == rates(straight)[6] > 0.0
    unchanged = Run(first, model_dir, tmp_path / "unchanged", start)
    assert not torch.equal(resumed.adapter, unchanged.adapter)
    optimizer = torch.load(Path(resumed.outcome.checkpoint_dir) / "optimizer.pt")
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.0}


def test_pairs_that_are_not_used_are_counted_and_warned_of(
    model_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ray_jobs.orpo.models import load_tokenizer
    from ray_jobs.orpo.tokens import tokenize_pairs

    tokens = tokenize_pairs(load_tokenizer(model_dir), text_pairs(13), SETTINGS).pairs
    lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in tokens]
    limit = sorted(lengths)[-3]
    num_over = sum(length > limit for length in lengths)
    with caplog.at_level(logging.INFO, "ray_jobs.orpo.training"):
        run = Run(changed(max_pair_tokens=limit, num_steps=1), model_dir, tmp_path)
    row, outcome = run.outcome.metrics.as_row(), run.outcome
    assert 2 <= num_over <= outcome.skipped["too_long"]
    assert (row["train_pairs"], outcome.num_train_pairs) == (13 - num_over, 13 - num_over)
    assert (row["unused_pairs"], row["cut_prompts"]) == (sum(outcome.skipped.values()), 0)
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    said = f"training pairs: {13 - num_over} used, not used: {{'too_long': {num_over}}}"
    assert levels[said] == "WARNING"
