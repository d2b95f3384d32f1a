"""Every stage of a run in a store, on one node after the other; stubs for what needs Ray or a model."""

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from ray_jobs.command import STAGES, run_owned
from ray_jobs.config import Config, load_config
from ray_jobs.export.trained import ADAPTER_FILES
from ray_jobs.records import Answer, Judgement
from ray_jobs.runs import RunFolder
from ray_jobs.stages import (
    ahead,
    cluster,
    engine_rows,
    export,
    generate,
    judge,
    judge_stream,
    prepare,
    registry,
    tune,
)
from ray_jobs.stages.block_actor import BlockActor
from ray_jobs.stages.checkpoints import write_note
from ray_jobs.stages.judge_stream import JudgeStream
from ray_jobs.tables import read_rows, schema
from serving.files import sha256_of
from serving.kept_models import model_here
from serving.registry import Registry
from serving.storage.mirror import shared
from serving.storage.node_cache import local_copy
from serving.storage.remote import Remote
from tests.chaos.stub_pipeline import digest, evaluation, manifest

ROOT = Path(__file__).parents[3]
NUM_PROMPTS = 24


judge_some = JudgeStream._judge_some


class Stubs:
    """What takes the place of Ray and of models, and counts what is done. `left`: blocks before a Ctrl-C.

    `tells`: whether answering engines tell that they are at work; what can be judged by then, and after each
    block, is judged before they go on.
    """

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.order: list[str] = []
        self.idle = 0
        self.left = 10**6
        self.tells = False
        self.ends_with: type[BaseException] = KeyboardInterrupt

    def fit(self, config: Config, job: dict[str, Any], folder: Path) -> list[Any]:
        self.done["fit"] += 1
        assert local_copy(job["train"]).is_file()
        return [self.trial(number, Remote(f"{job['storage']}/t{number}/checkpoint_1")) for number in (0, 1)]

    def trial(self, number: int, checkpoint: Remote) -> Any:
        row = evaluation(digest(number), 6)
        part = Path(self.scratch, f"trial-{number}")
        part.mkdir(exist_ok=True)
        for name in ADAPTER_FILES:
            (part / name).write_text(json.dumps(row))
        write_note(part, 0, [row])
        for file in part.iterdir():
            (checkpoint / file.name).upload(file)
        metrics = {**row, "checkpoint_path": checkpoint.path}
        path = f"run_trial_{number:08x}_{number}_x"
        return SimpleNamespace(metrics=metrics, metrics_dataframe=None, error=None, config={}, path=path)

    scratch = ""

    def export(self, config: Config, folder: RunFolder) -> list[str]:
        self.done["export"] += 1
        outputs = []
        for model in generate.MODELS:
            weights = folder.path("tune/best", ADAPTER_FILES[0]).read_bytes()
            path = folder.write(f"models/{model}/model.gguf", b"GGUF" + model.encode() + weights)
            folder.write_json(f"models/{model}/manifest.json", manifest(path))
            outputs += [f"models/{model}/model.gguf", f"models/{model}/manifest.json"]
        return outputs

    def interrupted_fit(self, *_: Any) -> None:
        self.wait_for_work_ahead()
        raise KeyboardInterrupt

    def wait_for_work_ahead(self) -> None:
        for thread in threading.enumerate():
            if thread.name == "ahead" and thread is not threading.current_thread():
                thread.join()

    def write_model(
        self, config: Config, folder: RunFolder, base: Any, model: str, adapter: Path | None
    ) -> None:
        self.done[f"model {model}"] += 1
        path = folder.write(f"models/{model}/model.gguf", b"GGUF" + model.encode())
        folder.write(f"models/{model}/Modelfile", b"FROM model.gguf")
        folder.write_json(f"models/{model}/manifest.json", manifest(path))

    def map_ranges(
        self, job: Any, source: Path, folder: Path, tasks: Any, actors: int, cores: int, heard: Any
    ) -> Iterator[Any]:
        """As Ray Data would, but in this process, one task after the other."""
        actor = BlockActor(job, shared(source), shared(folder), None)
        answers = self.tells and job.stage == "generate"
        if answers:
            heard({"answer_tokens": 1})
            self.wait_for_judges()
        for task in tasks:
            if self.left == 0:
                beside = threading.current_thread() is not threading.main_thread()
                raise OSError("ends too") if beside else self.ends_with
            self.left -= 1
            self.order.append(f"{job.stage} {Path(folder).parent.name}")
            self.done[self.order[-1]] += 1
            yield from actor(pa.Table.from_pylist([{"ranges": [list(block) for block in task]}])).to_pylist()
            if answers:
                self.wait_for_judges()

    def wait_for_judges(self) -> None:
        """Until they have looked for work twice and found none: once, they may have begun to look before."""
        seen = self.idle
        while any(thread.name == "ahead" for thread in threading.enumerate()) and self.idle < seen + 2:
            time.sleep(0.001)

    def judge_some(self, stream: JudgeStream, progress: Any) -> bool:
        did = judge_some(stream, progress)
        self.idle += not did
        return did


class AnswerActor:
    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = {**spec, "weights": local_copy(spec["model"]).read_text()}

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [
            generate._answer(row, SimpleNamespace(
                finish_reason="stop", text=digest(self._spec["weights"], row["id"]), num_prompt_tokens=1,
                num_cached_tokens=0, num_answer_tokens=1, seconds=0.0, error=None,
            ), None, self._spec)
            for row in table.to_pylist()
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=schema(Answer.COLUMNS))


JUDGED: Counter[tuple[str, str]] = Counter()


class JudgeActor:
    def __init__(self, spec: dict[str, Any]) -> None:
        assert local_copy(spec["own_models"]["run:base"]).read_bytes().startswith(b"GGUF")

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [
            {"subject": row["subject"], **dataclasses.asdict(self.score(row))} for row in table.to_pylist()
        ]
        return pa.Table.from_pylist(rows, schema=schema(judge.RESULT_COLUMNS))

    def score(self, row: dict[str, Any]) -> Judgement:
        JUDGED[row["subject"], row["id"]] += 1
        score = int(digest(row["answer"])[:2], 16) % 5 + 1
        metric = "RESPONSE_CORRECTNESS_5POINT"
        return Judgement(row["id"], metric, score, float(score), "so", None, "", "f" * 64, 0.0)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stubs:
    stubs = Stubs()
    stubs.scratch = str(tmp_path)
    JUDGED.clear()
    monkeypatch.setattr(judge_stream, "POLL_S", 0.001)
    monkeypatch.setattr(judge_stream, "WORTH_S", 0.0)
    monkeypatch.setattr(JudgeStream, "_judge_some", lambda *given: stubs.judge_some(*given))
    base = SimpleNamespace(name="stub", sha256=digest("stub"), gguf=Path("none"), hf_dir=Path("none"))
    monkeypatch.setattr("ray_jobs.export.base.resolve_base", lambda *_: base)
    monkeypatch.setattr("ray_jobs.data.forecast.load_tokenizer", lambda *_: None)
    monkeypatch.setattr("serving.promote.first_words", lambda _: b"{}")
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "actor"))
    monkeypatch.setattr(BlockActor, "_begin", lambda *_: 0)
    monkeypatch.setattr(BlockActor, "_end", lambda *_: None)
    monkeypatch.setattr("ray_jobs.stages.block_actor.tell", lambda *_: None)
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(cluster, "engine_cpus", lambda: 2)
    monkeypatch.setattr(prepare, "check_judging", lambda *_: None)
    monkeypatch.setattr(tune, "check_export_memory", lambda _: None)
    monkeypatch.setattr(tune, "check_room", lambda _: None)
    monkeypatch.setattr(tune, "fit", stubs.fit)
    monkeypatch.setattr(engine_rows, "map_ranges", stubs.map_ranges)
    monkeypatch.setattr(generate, "AnswerActor", AnswerActor)
    monkeypatch.setattr(judge, "JudgeActor", JudgeActor)
    monkeypatch.setattr(export, "STAGE", dataclasses.replace(export.STAGE, run=stubs.export))
    return stubs


def config_of(store: str, *more: str) -> Config:
    changes = [*more, f"storage={store}", f"registry={store}-registry", f"data.num_prompts={NUM_PROMPTS}"]
    changes += ["engine.rows_per_block=4", "engine.actors=1", "verdict.num_resamples=200"]
    return load_config(ROOT / "configs/smoke.yaml", changes)


def test_a_run_goes_from_node_to_node_and_nothing_is_done_twice(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubs: Stubs
) -> None:
    config = config_of(store)
    run = Remote(f"{store}/smoke")
    for node, left in (("a", 3), ("b", 6), ("c", 5)):  # a Ctrl-C in the answers of both models, in judging
        monkeypatch.setenv("ORPO_CACHE", str(tmp_path / node))
        stubs.left = left
        with pytest.raises(KeyboardInterrupt):
            run_owned(config, registry.stages(), STAGES, ())
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "d"))
    stubs.left = 10**6
    run_owned(config, registry.stages(), STAGES, ())

    num_blocks = NUM_PROMPTS // 4
    num_judged = 2 * NUM_PROMPTS + 2 * 8 + 2
    assert stubs.done == {
        "fit": 1,
        "export": 1,
        "generate base": num_blocks,
        "generate candidate": num_blocks,
        "judge look-0": -(-num_judged // 4),
    }
    prompts = [row["id"] for row in read_rows(local_copy((run / "data/prompts.parquet").uri))]
    for model in generate.MODELS:
        answers = read_rows(local_copy((run / f"answers/{model}/part-00000.parquet").uri))
        assert [row["id"] for row in answers] == prompts
        assert all(row["model_sha256"] == sha256_of(local_copy((run / f"models/{model}/model.gguf").uri))
                   for row in answers)  # fmt: skip
    assert not [name for name in run.listing() if "unfinished" in name or name.startswith("owners/")]

    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "e"))
    before, done = run.listing(), Counter(stubs.done)
    folder = run_owned(config, registry.stages(), STAGES, ())
    assert (run.listing().keys(), stubs.done) == (before.keys(), done)
    assert {state.status for state in folder.states().values()} == {"done"}
    champion = Registry.at(config.registry).champion()
    assert champion is not None
    assert champion.report == f"{run.uri}/report/report.json"
    assert sha256_of(model_here(champion.model, champion.sha256)) == champion.sha256


def test_what_one_node_did_ahead_of_the_trials_is_taken_up_on_another(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubs: Stubs
) -> None:
    monkeypatch.setattr(export, "STAGE", dataclasses.replace(export.STAGE, run=export.run))
    monkeypatch.setattr(export, "write_model", stubs.write_model)
    monkeypatch.setattr(ahead, "room", lambda *_: 1)
    monkeypatch.setattr(tune, "fit", stubs.interrupted_fit)
    config = config_of(store, "export.adapter=false")
    run = Remote(f"{store}/smoke")
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "a"))
    stubs.left, stubs.ends_with = NUM_PROMPTS // 4 + 3, OSError
    with pytest.raises(KeyboardInterrupt):
        run_owned(config, registry.stages(), STAGES, ())
    known = NUM_PROMPTS + 2 * 8 + 2
    assert stubs.done == {"model base": 1, "generate unfinished": NUM_PROMPTS // 4, "judge rows": 3}

    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "b"))
    monkeypatch.setattr(tune, "fit", stubs.fit)
    monkeypatch.setattr(ahead, "room", lambda *_: 0)
    stubs.left = 10**6
    run_owned(config, registry.stages(), STAGES, ())
    assert stubs.done == {
        "fit": 1,
        "model base": 1,
        "model candidate": 1,
        "generate unfinished": NUM_PROMPTS // 4,
        "generate candidate": NUM_PROMPTS // 4,
        "judge rows": -(-known // 4),
        "judge look-0": NUM_PROMPTS // 4,
    }
    assert not [name for name in run.listing() if name.startswith(("ahead/", "owners/"))]
    for model in generate.MODELS:
        judged = read_rows(local_copy((run / f"judgements/{model}/part-00000.parquet").uri))
        assert len({row["id"] for row in judged}) == len(judged) == NUM_PROMPTS


def judgements_of(run: RunFolder) -> dict[str, Any]:
    return {subject: read_rows(run.path(judge.JUDGEMENTS.format(subject=subject)))
            for subject in judge.subjects(run)}  # fmt: skip


def report_of(run: RunFolder) -> dict[str, Any]:
    return {**json.loads(run.path("report/report.json").read_text()), "timings_s": None}


def test_answers_are_judged_while_the_candidate_answers(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubs: Stubs
) -> None:
    config = config_of(store)
    num_blocks, num_known = NUM_PROMPTS // 4, -(-(NUM_PROMPTS + 2 * 8 + 2) // 4)
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "a"))
    # Two blocks of the candidate; the first is judged, the judges of the second are ended by the Ctrl-C.
    stubs.tells, stubs.left = True, num_blocks + num_known + 3
    with pytest.raises(KeyboardInterrupt):
        run_owned(config, registry.stages(), STAGES, ())
    made = {"fit": 1, "export": 1, "generate base": num_blocks, "judge rows": num_known}
    first = {"judge batch-000000000000-000000000004": 1}
    assert stubs.done == made | {"generate candidate": 2} | first

    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "b"))
    stubs.left = 10**6
    run = run_owned(config, registry.stages(), STAGES, ())
    batches = {f"judge batch-{start:012}-{start + 4:012}": 1 for start in range(0, NUM_PROMPTS, 4)}
    assert stubs.done == made | {"generate candidate": num_blocks} | batches
    candidates = [event for event in stubs.order if event == "generate candidate" or "batch-" in event]
    assert candidates[:3] == ["generate candidate", *first, "generate candidate"]
    assert candidates[-3:] == [
        "generate candidate", f"judge batch-{NUM_PROMPTS - 4:012}-{NUM_PROMPTS:012}",
        "judge batch-000000000004-000000000008",
    ], "each block is judged once it is there; the batch that was interrupted by the judge stage"  # fmt: skip
    assert set(JUDGED.values()) == {1}
    assert not [name for name in Remote(f"{store}/smoke").listing() if name.startswith("ahead/")]

    judgements, report = judgements_of(run), report_of(run)
    run_owned(config.model_copy(update={"engine": config.engine.model_copy(update={"ahead": False})}),
              registry.stages(), STAGES, {"generate"})  # fmt: skip
    assert stubs.done["judge look-0"] == -(-(2 * NUM_PROMPTS + 2 * 8 + 2) // 4)
    assert judgements_of(run) == judgements
    assert report_of(run) == report


@pytest.mark.parametrize("actors", [1, 2])
def test_interrupts_while_answers_are_judged_beside_others_change_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubs: Stubs, actors: int
) -> None:
    """A Ctrl-C every few blocks. `actors`: 1 leaves room for a judge at once, 2 at the last block."""
    plain = run_owned(config_of(f"{store}-plain", "engine.ahead=false"), registry.stages(), STAGES, ())
    JUDGED.clear()
    stubs.done.clear()
    stubs.order.clear()
    config = config_of(store)
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"actors": actors})})
    stubs.tells, run, starts = True, None, 0
    while run is None:
        monkeypatch.setenv("ORPO_CACHE", str(tmp_path / f"node-{starts}"))
        stubs.left, starts = 3 if starts else NUM_PROMPTS // 4, starts + 1
        with suppress(KeyboardInterrupt):
            run = run_owned(config, registry.stages(), STAGES, ())
    assert starts > 5
    last = len(stubs.order) - stubs.order[::-1].index("generate candidate")
    assert any("batch-" in event for event in stubs.order[:last]), "judged before the last block is answered"
    assert stubs.done["generate candidate"] == NUM_PROMPTS // 4
    assert set(JUDGED.values()) == {1}
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "node"))
    assert judgements_of(run) == judgements_of(plain)
    assert report_of(run) == report_of(plain)
