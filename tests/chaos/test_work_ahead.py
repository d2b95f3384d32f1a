"""The base's rows made while the trials train; answers judged while the candidate answers: through Ray."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.command import STAGES, run_owned
from ray_jobs.config import Config, load_config
from ray_jobs.data.settings import Source
from ray_jobs.runs import RunFolder, write_whole
from ray_jobs.stages import (
    cluster,
    compare,
    export,
    generate,
    judge,
    judge_stream,
    prepare,
    registry,
    train_worker,
    tune,
)
from ray_jobs.stages.block_actor import TOKENS
from ray_jobs.stages.engine_rows import BLOCKS_IN_FLIGHT
from ray_jobs.tables import read_rows
from tests.chaos.results import results, timeless, unequal
from tests.chaos.stub_pipeline import (
    StubAnswerActor,
    StubJudgeActor,
    digest,
    manifest,
    stub_training,
)

ROOT = Path(__file__).parents[2]
NUM_PROMPTS, NUM_TRUST, NUM_REPEATS = 48, 20, 2
NUM_KNOWN = NUM_PROMPTS + 2 * NUM_TRUST + 2 * NUM_REPEATS
"""Rows to judge that need no candidate."""
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
    scores = "ahead/unfinished/judgements-*/rows/output.parquet"
    wait_for(lambda: any(root.glob(scores)), "nothing was done ahead")


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


def stub_model(config: Config, folder: RunFolder, base: Any, model: str, adapter: Path | None) -> None:
    weights = b"base" if adapter is None else (adapter / "adapter_model.safetensors").read_bytes()
    path = folder.path("models", model, "model.gguf")
    write_whole(path, b"GGUF" + weights)
    folder.write(f"models/{model}/Modelfile", b"FROM model.gguf")
    folder.write_json(f"models/{model}/manifest.json", manifest(path))


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    base = SimpleNamespace(name="stub", sha256=digest("stub"), gguf=Path("none"), hf_dir=Path("none"))
    monkeypatch.setattr("ray_jobs.export.base.resolve_base", lambda *_: base)
    monkeypatch.setattr("ray_jobs.data.forecast.load_tokenizer", lambda *_: None)
    monkeypatch.setattr("serving.promote.first_words", lambda _: b"{}")
    monkeypatch.setattr(prepare, "check_judging", lambda *_: None)
    monkeypatch.setattr(tune, "check_export_memory", lambda _: None)
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
    assert f"judge    takes up {NUM_KNOWN} of {NUM_KNOWN} rows" in caplog.text
    assert not run.path("ahead").exists()
    spent = run.read_json("answers/base/spent.json")
    assert (spent["engines"], spent["cores"]) == (2, 1), "what it took is told by who did it"

    ahead = results(run.root)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run_owned(config_of(tmp_path, "engine.ahead=false"), registry.stages(), STAGES, {"export"})
    assert "takes up" not in caplog.text
    assert list(unequal(ahead, results(run.root))) == []


def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> RunFolder:
    """A run that generates, judges and decides, with two models that are there; judges start at once."""
    monkeypatch.setattr(compare, "check_models", lambda _: None)
    monkeypatch.setattr("ray_jobs.stages.preflight.check_judging", lambda *_: None)
    monkeypatch.setattr(judge_stream, "WORTH_S", 0.0)
    models = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path in models:
        path.write_bytes(b"GGUF" + path.name.encode())
    stages = compare.stages(compare.comparison(models, Source(source="bundled:pairs", max_rows=60)))
    fixed = ("workers.gpus_per_worker=0", f"data.num_trust_pairs={NUM_TRUST}")
    return run_owned(config_of(tmp_path, *fixed, *changes), stages, compare.NAMES, ())


@pytest.mark.long
@pytest.mark.usefixtures("machine_with_a_gpu", "stubs")
def test_the_base_is_judged_while_the_candidate_answers_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(generate, "AnswerActor", PatientAnswerActor)
    with caplog.at_level(logging.INFO):
        run = compared(tmp_path, monkeypatch)
    assert f"judge    takes up {NUM_KNOWN} of {NUM_KNOWN} rows" in caplog.text
    assert not run.path("ahead").exists()


class LastAnswerActor(StubAnswerActor):
    """The candidate's last prompt is answered once other answers of it are judged: never, where that is done
    after it. Notes when it was."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self.engine.metrics = lambda: SimpleNamespace(**dict.fromkeys(TOKENS, 1))

    def __call__(self, table: Any) -> Any:
        root = Path(self._spec["model"]).parents[2]
        last = read_rows(root / "data/prompts.parquet")[-1]["id"]
        if Path(self._spec["model"]).parent.name == "candidate" and last in table["id"].to_pylist():
            wait_for(lambda: any(root.glob("judged/candidate-*")), "no answer of the candidate was judged")
            note(root, "answered", "last")
        return super().__call__(table)


class NotingJudgeActor(StubJudgeActor):
    """Notes when it judged which answers of the candidate."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self._root = Path(spec["own_models"]["run:base"]).parents[2]

    def __call__(self, table: Any) -> Any:
        results = super().__call__(table)
        for row in table.to_pylist():
            note(self._root, "judged", f"{row['subject']}-{digest(row['id'])[:12]}")
        return results


def note(root: Path, what: str, name: str) -> None:
    """Adds the time to a file of the run: a time before the file was there to be seen."""
    now = time.time()
    (root / what).mkdir(exist_ok=True)
    with (root / what / name).open("a") as file:
        file.write(f"{now}\n")


def times(root: Path, names: str) -> list[float]:
    return sorted(float(line) for path in root.glob(names) for line in path.read_text().splitlines())


def wait_for(reached: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < end, otherwise
        time.sleep(0.1)


@pytest.mark.parametrize(
    "actors",
    [
        pytest.param(2, id="room from the beginning", marks=pytest.mark.long),
        pytest.param(0, id="room at the last block"),
    ],
)
@pytest.mark.usefixtures("machine_with_a_gpu", "stubs")
def test_the_candidates_answers_are_judged_while_it_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actors: int
) -> None:
    monkeypatch.setattr(generate, "AnswerActor", LastAnswerActor)
    monkeypatch.setattr(judge, "JudgeActor", NotingJudgeActor)
    runs = []
    for ahead in (True, False):
        (tmp_path / f"{ahead}").mkdir()
        if not ahead:
            monkeypatch.setattr(generate, "AnswerActor", StubAnswerActor)
        changes = (f"engine.actors={actors}", f"engine.ahead={ahead}")
        runs.append(compared(tmp_path / f"{ahead}", monkeypatch, *changes))
    beside, plain = runs
    (last,) = times(beside.root, "answered/last")
    judged = times(beside.root, "judged/candidate-*")
    assert judged[0] < last < judged[-1]
    for run in runs:
        assert len(times(run.root, "judged/*-*")) == NUM_PROMPTS + NUM_KNOWN
    for subject in judge.subjects(plain):
        name = judge.JUDGEMENTS.format(subject=subject)
        assert timeless(read_rows(beside.path(name))) == timeless(read_rows(plain.path(name)))
    report = "report/report.json"
    assert timeless(beside.read_json(report)) == timeless(plain.read_json(report))


class FirstJudgeActor(NotingJudgeActor):
    """Notes when it starts, and judges once as many have started as are wanted."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        note(self._root, "started", f"judge-{os.getpid()}")

    def __call__(self, table: Any) -> Any:
        wait_for(lambda: len(times(self._root, "started/judge-*")) >= 3, "judges found no core in the end")
        return super().__call__(table)


class AnswersOnceJudgesStart(StubAnswerActor):
    """The candidate answers once a judge has started; notes when it has."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self.engine.metrics = lambda: SimpleNamespace(**dict.fromkeys(TOKENS, 1))

    def __call__(self, table: Any) -> Any:
        root = Path(self._spec["model"]).parents[2]
        if Path(self._spec["model"]).parent.name == "candidate":
            wait_for(lambda: any(root.glob("started/judge-*")), "no judge was started")
        results = super().__call__(table)
        note(root, "answered", Path(self._spec["model"]).parent.name)
        return results


@pytest.mark.long
@pytest.mark.usefixtures("machine_with_a_gpu", "stubs")
def test_judges_that_find_no_core_start_as_answering_engines_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three engines answer on four cores, three are to judge: one finds a core at once."""
    monkeypatch.setattr(generate, "AnswerActor", AnswersOnceJudgesStart)
    monkeypatch.setattr(judge, "JudgeActor", FirstJudgeActor)
    with caplog.at_level(logging.INFO):
        run = compared(tmp_path, monkeypatch, "engine.actors=3")
    assert f"judge    takes up {NUM_KNOWN} of {NUM_KNOWN} rows" in caplog.text, "the first judges did it all"
    first, *others = times(run.root, "started/judge-*")[:3]
    answered = times(run.root, "answered/candidate")
    assert first < answered[0]
    assert answered[BLOCKS_IN_FLIGHT - 1] < min(others), "an engine ends once it has no block left"
