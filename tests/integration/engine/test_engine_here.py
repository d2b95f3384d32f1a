"""An engine of a job, on a node whose cores others own."""

from pathlib import Path

import pytest

from ray_jobs.stages.engine_here import open_engine
from serving.engine import EngineSettings, Request, Sampling
from serving.engine.cores import CoreLease
from serving.engine.topology import usable_cores


def test_a_job_beside_an_endpoint_shares_its_cores(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a run on the machine of `orpo serve`, which owns all cores; its answers are the same."""
    there = usable_cores()
    if there is None:
        pytest.skip("nobody owns cores here")
    monkeypatch.setattr("serving.engine.cores._lock_folder", lambda: tmp_path)
    settings = EngineSettings(core_wait_s=0.1, slots=2, verify=False, deterministic="auto")

    def answer() -> tuple[bool, str]:
        with open_engine(model_path, settings) as engine:
            prompt = engine.chat.render([{"role": "user", "content": "Name three rivers."}])
            (result,) = engine.generate([Request("a", prompt, Sampling(max_tokens=12))])
            return engine.settings.pin, result.text

    alone = answer()
    assert alone[0]
    assert not caplog.records
    with CoreLease.acquire(len(there)):
        assert answer() == (False, alone[1])
    assert "the engine shares its cores with others" in caplog.text


def test_an_engine_of_more_cores_than_there_are_takes_all_of_them(model_path: Path) -> None:
    """Where Ray was told of hyper-threads, or of more than a container grants."""
    there = len(usable_cores() or ())
    if not there:
        pytest.skip("nobody owns cores here")
    settings = EngineSettings(cores=there + 4, lanes=there + 3, slots=2, verify=False)
    with open_engine(model_path, settings) as engine:
        assert (engine.settings.cores, engine.settings.lanes, engine.settings.pin) == (there, there, False)


def test_slots_are_as_many_as_the_memory_holds_and_answer(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2-135M keeps 30 layers x 3 heads x 64 channels x 2 in f16 of a token: 23,040 bytes."""
    monkeypatch.setattr("serving.engine.cores._lock_folder", lambda: tmp_path)
    there = len(usable_cores() or ()) or 1
    room = 3.5 * 2048 * 23_040
    monkeypatch.setattr("serving.engine.llamacpp.memory.free_memory_bytes", lambda: int(room / 0.8))
    settings = EngineSettings(cores=there, lanes=1, context_tokens=2048, kv_type="f16", verify=False)
    with open_engine(model_path, settings) as engine:
        prompt = engine.chat.render([{"role": "user", "content": "Name a river."}])
        requests = [Request(str(n), prompt, Sampling(max_tokens=4)) for n in range(8)]
        results = engine.generate(requests)
        assert engine.metrics().num_slots == 3
        assert len({result.text for result in results}) == 1
        assert {result.num_answer_tokens for result in results} == {4}
