"""Answers that nobody sees, and the run folder that the judges read them from."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from serving_fakes import FakeEngine

from ray_jobs.runs import RunFolder
from ray_jobs.stages import generate
from serving.answering import HostBackend
from serving.calls import Call, Started
from serving.engine import Engine, EngineSettings, Sampling
from serving.files import sha256_of
from serving.host import ModelHost
from serving.registry import Registry
from serving.shadow import Shadow, main, rows_of

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
    trust = tmp_path / "runs" / "local" / "data" / "trust.parquet"
    trust.parent.mkdir(parents=True)
    trust.write_bytes(b"known pairs")
    run = tmp_path / "runs" / "shadow"
    arguments = [str(run), "--trust", str(trust.parents[1]), "--registry", str(shadowed.registry.root)]
    assert main(arguments) == 0
    folder = cast("RunFolder", SimpleNamespace(path=lambda *parts: run.joinpath(*parts)))
    prompts = generate.read_prompts(folder)
    assert [prompt.id for prompt in prompts] == ["call-0", "call-1", "call-2"]
    for model, word in (("base", "two"), ("candidate", "one")):
        answers = generate.answers_of(folder, model)
        assert [answer.answer for answer in answers] == [word] * 3
        assert [answer.prompt_sha256 for answer in answers] == [prompt.sha256 for prompt in prompts]
    assert (run / "data" / "trust.parquet").read_bytes() == b"known pairs"
    assert json.loads(stored.read_bytes().splitlines()[0])["source"] == "shadow"


def test_nothing_stored_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "run"), "--trust", str(tmp_path), "--registry", str(tmp_path)]) == 1
    assert "no answers are stored" in capsys.readouterr().err
