"""Answers that nobody sees, and the run folder that the judges read them from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from serving_fakes import FakeEngine

from ray_jobs.config import load_config
from ray_jobs.records import Judgement, as_row
from ray_jobs.runs import open_run
from ray_jobs.shadow import compared, latest_pair, main, write_inputs
from ray_jobs.stages import generate, judge
from ray_jobs.stages.base import stage_inputs
from ray_jobs.tables import write_rows
from serving.answering import HostBackend
from serving.calls import Call, Started
from serving.engine import Engine, EngineSettings, Sampling
from serving.files import sha256_of
from serving.host import ModelHost
from serving.registry import Registry
from serving.shadow import Shadow
from serving.shadow_files import rows_of

ROOT = Path(__file__).parents[3]
QUESTION = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Née?"})


class Shadowed:
    """A champion that says `two`, with `one` behind it."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(folder / "registry")
        self.sha256 = {}
        for word in ("one", "two"):
            path = folder / f"{word}.gguf"
            path.write_text(word)
            self.sha256[word] = sha256_of(path)
            self.registry.promote(path, sha256=self.sha256[word], run="local", report=path)
        self.engines: list[FakeEngine] = []
        self.host = ModelHost(self.registry, EngineSettings(pin=False), open_engine=self._open)
        self.host.follow()
        self.backend = HostBackend(self.host, self.registry)
        self.backend.shadower.rule = Shadow(model=f"local@{self.sha256['one'][:8]}", share=1.0)

    def _open(self, path: Path, *_: Any) -> Engine:
        self.engines.append(FakeEngine(path))
        return cast("Engine", self.engines[-1])

    def ask(self, **fields: Any) -> str:
        """The hash of the model that answers; the shadow has ended too."""
        fields = {"id": "a", "model": None, "sampling": Sampling(), "max_tokens": None, **fields}
        call = Call(**{"messages": QUESTION, **fields})

        async def run() -> str:
            events = [event async for events in self.backend.generate(call) for event in events]
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                await task
            assert isinstance(events[0], Started)
            return events[0].sha256

        return asyncio.run(run())


@pytest.fixture
def shadowed(tmp_path: Path) -> Shadowed:
    return Shadowed(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_both_answers_are_stored_and_one_is_given(shadowed: Shadowed, stream: bool) -> None:
    assert shadowed.ask(stream=stream) == shadowed.sha256["two"]
    (row,) = rows_of(shadowed.registry.root)
    assert row["messages"] == list(QUESTION)
    answers = row["answers"]
    assert (answers["champion"]["answer"], answers["shadow"]["answer"]) == ("two", "one")
    assert answers["shadow"]["model_sha256"] == shadowed.sha256["one"]
    assert all(model.num_calls == 0 for model in shadowed.host.loaded)


def test_what_judges_cannot_read_or_clients_would_wait_for_is_left_alone(shadowed: Shadowed) -> None:
    shadowed.ask(messages=None, prompts=("x",))
    shadowed.ask(sampling=Sampling(json_schema="{}"))
    shadowed.ask(num_choices=2)
    shadowed.ask(model=f"local@{shadowed.sha256['one'][:8]}")
    shadowed.engines[0].num_queued = 1
    shadowed.ask()
    shadowed.engines[0].num_queued = 0
    shadowed.backend.shadower.rule = Shadow(model="champion", share=0.0)
    shadowed.ask()
    shadowed.backend.shadower.rule = Shadow(model="none", share=1.0)
    shadowed.ask()
    assert rows_of(shadowed.registry.root) == []


def test_the_judge_stage_reads_the_run_folder(shadowed: Shadowed, tmp_path: Path) -> None:
    for number in range(3):
        shadowed.ask(id=f"call-{number}")
    stored = next((shadowed.registry.root / "shadow").glob("*.jsonl"))
    stored.write_bytes(stored.read_bytes() + b'{"id": "half')
    finished = tmp_path / "runs" / "local"
    for name in ("data/trust.parquet", "models/base/model.gguf"):
        (finished / name).parent.mkdir(parents=True)
        (finished / name).write_bytes(name.encode())
    folder = open_run(str(tmp_path / "runs"), "shadow")
    write_inputs(rows_of(shadowed.registry.root), folder, finished)
    prompts = list(generate.iter_prompts(folder))
    assert [prompt.id for prompt in prompts] == ["call-0", "call-1", "call-2"]
    for model, word in (("base", "two"), ("candidate", "one")):
        answers = list(generate.iter_answers(folder, model))
        assert [answer.answer for answer in answers] == [word] * 3
        assert [answer.prompt_sha256 for answer in answers] == [prompt.sha256 for prompt in prompts]
    assert folder.path("models/base/model.gguf").read_bytes() == b"models/base/model.gguf"
    inputs = stage_inputs(judge.STAGE, load_config(ROOT / "configs" / "local.yaml"), folder)
    needed = {*judge.STAGE.needs, *judge.STAGE.more_needs(folder)}
    assert {name for name in inputs if name.endswith(".parquet")} == {
        name for name in needed if name.endswith(".parquet")
    }


def test_scores_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    folder = open_run(str(tmp_path), "shadow")
    scores = {"base": [1, 5, 3, None], "candidate": [2, 4, 3, 5]}
    for model, column in scores.items():
        rows = [
            as_row(
                Judgement(str(number), "m", score, None, None, None if score else "no_score", "p", "j", 0.0)
            )
            for number, score in enumerate(column)
        ]
        path = folder.path(judge.JUDGEMENTS.format(subject=model))
        path.parent.mkdir(parents=True)
        write_rows(path, rows, Judgement.COLUMNS)
    assert compared(folder) == ["m: champion 3.00, shadow 3.00 on 3 prompts; shadow better on 1, worse on 1"]


@pytest.mark.parametrize(("name", "said"), [("shadow", "no answers are stored"), ("../x", "name")])
def test_what_is_missing_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    settings = [f"storage={tmp_path}", f"registry={tmp_path}", f"name={name}"]
    changes = [part for each in settings for part in ("--set", each)]
    assert main([str(ROOT / "configs" / "local.yaml"), "--run", str(tmp_path), *changes]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")


def test_only_answers_of_the_latest_two_models_are_compared() -> None:
    """A champion that was replaced, and is the shadow now, would stand on both sides."""

    def row(number: int, champion: str, shadow: str) -> dict[str, Any]:
        answers = {"champion": {"model_sha256": champion}, "shadow": {"model_sha256": shadow}}
        return {"id": str(number), "asked_s": number, "answers": answers}

    rows = [row(1, "a", "base"), row(2, "a", "base"), row(3, "b", "a"), row(4, "b", "a")]
    assert [each["id"] for each in latest_pair(rows)] == ["3", "4"]
    assert [each["id"] for each in latest_pair(rows[:3])] == ["3"]
