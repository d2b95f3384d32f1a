"""The base's rows made while the trials train, or judged while the candidate answers: through Ray."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.command import STAGES, run_owned
from ray_jobs.config import Config, load_config
from ray_jobs.data.settings import Source
from ray_jobs.runs import RunFolder, write_whole
from ray_jobs.stages import cluster, compare, export, generate, judge, prepare, registry, train_worker, tune
from ray_jobs.stages.block_actor import TOKENS
from tests.chaos.results import results, unequal
from tests.chaos.stub_pipeline import (
    StubAnswerActor,
    StubJudgeActor,
    digest,
    manifest,
    stub_training,
)

ROOT = Path(__file__).parents[2]
NUM_PROMPTS, NUM_TRUST, NUM_REPEATS = 48, 20, 2
CHANGES = (
    "workers.gpus_per_worker=1", "workers.cpus_per_worker=1", "engine.actors=2", "export.adapter=false",
    "search.num_trials=1", "search.max_failures=1", f"data.num_prompts={NUM_PROMPTS}",
)  # fmt: skip
WAIT_S = 180


def patient_training(job: dict[str, Any], settings: Any, reports: Any, resume_from: str | None) -> None:
    """Waits until all that can be done ahead is done: for ever, where it would wait for the trials' end."""
    wait_for_scores_ahead(Path(job["train"]).parents[1])
    stub_training(job, settings, reports, resume_from)


def wait_for_scores_ahead(root: Path) -> None:
    end = time.monotonic() + WAIT_S
    while not list(root.glob("ahead/unfinished/judgements-*/rows/output.parquet")):
        assert time.monotonic() < end, "nothing was done ahead"
        time.sleep(0.1)


class PatientAnswerActor(StubAnswerActor):
    """The candidate answers once the base is judged: never, where that is done after it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self.engine.metrics = lambda: SimpleNamespace(**dict.fromkeys(TOKENS, 1))

    def __call__(self, table: Any) -> Any:
        if (model := Path(self._spec["model"])).parent.name == "candidate":
            wait_for_scores_ahead(model.parents[2])
        return super().__call__(table)


def patient_worker(job: dict[str, Any]) -> None:
    train_worker.resumed(job, patient_training)


def stub_model(config: Config, folder: RunFolder, base: Any, model: str, adapter: Path | None) -> list[str]:
    weights = b"base" if adapter is None else (adapter / "adapter_model.safetensors").read_bytes()
    path = folder.path("models", model, "model.gguf")
    write_whole(path, b"GGUF" + weights)
    folder.write(f"models/{model}/Modelfile", b"FROM model.gguf")
    folder.write_json(f"models/{model}/manifest.json", manifest(path))
    return export.outputs_of(model)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    base = SimpleNamespace(name="stub", sha256=digest("stub"), gguf=Path("none"), hf_dir=Path("none"))
    monkeypatch.setattr("ray_jobs.export.base.resolve_base", lambda *_: base)
    monkeypatch.setattr("ray_jobs.data.forecast.load_tokenizer", lambda *_: None)
    monkeypatch.setattr("serving.promote.first_words", lambda _: b"{}")
    monkeypatch.setattr(prepare, "check_judging", lambda *_: None)
    monkeypatch.setattr(tune, "train_worker", patient_worker)
    monkeypatch.setattr(export, "write_model", stub_model)
    monkeypatch.setattr(generate, "AnswerActor", StubAnswerActor)
    monkeypatch.setattr(judge, "JudgeActor", StubJudgeActor)


@pytest.fixture(scope="module")
def machine_with_a_gpu() -> Any:
    import ray

    ray.shutdown()
    ray.init(address="local", num_cpus=4, num_gpus=1, log_to_driver=False, logging_level="ERROR")
    cluster.quiet()
    yield
    ray.shutdown()


def config_of(storage: Path, *changes: str) -> Config:
    fixed = (f"storage={storage}", f"registry={storage}/registry")
    return load_config(ROOT / "tests/chaos/stub.yaml", [*fixed, *CHANGES, *changes])


@pytest.mark.long
@pytest.mark.usefixtures("machine_with_a_gpu", "stubs")
def test_the_bases_rows_are_made_while_the_trials_train_and_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run = run_owned(config_of(tmp_path), registry.stages(), STAGES, ())
    assert "ahead    2 engine(s) answer as the base while the trials train" in caplog.text
    assert "export   base: made while the trials trained" in caplog.text
    assert f"generate takes up {NUM_PROMPTS} of {NUM_PROMPTS} rows" in caplog.text
    known = NUM_PROMPTS + 2 * NUM_TRUST + 2 * NUM_REPEATS
    assert f"judge    takes up {known} of {known} rows" in caplog.text
    assert not run.path("ahead").exists()
    spent = run.read_json("answers/base/spent.json")
    assert (spent["engines"], spent["cores"]) == (2, 1), "what it took is told by who did it"

    ahead = results(run.root)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run_owned(config_of(tmp_path, "engine.ahead=false"), registry.stages(), STAGES, {"export"})
    assert "takes up" not in caplog.text
    assert list(unequal(ahead, results(run.root))) == []


@pytest.mark.usefixtures("machine_with_a_gpu", "stubs")
def test_the_base_is_judged_while_the_candidate_answers_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(generate, "AnswerActor", PatientAnswerActor)
    monkeypatch.setattr(compare, "check_models", lambda _: None)
    monkeypatch.setattr("ray_jobs.stages.preflight.check_judging", lambda *_: None)
    models = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path in models:
        path.write_bytes(b"GGUF" + path.name.encode())
    stages = compare.stages(compare.comparison(models, Source(source="bundled:pairs", max_rows=60)))
    config = config_of(tmp_path, "workers.gpus_per_worker=0", f"data.num_trust_pairs={NUM_TRUST}")

    with caplog.at_level(logging.INFO):
        run = run_owned(config, stages, compare.NAMES, ())
    known = NUM_PROMPTS + 2 * NUM_TRUST + 2 * NUM_REPEATS
    assert f"judge    takes up {known} of {known} rows" in caplog.text
    assert not run.path("ahead").exists()
