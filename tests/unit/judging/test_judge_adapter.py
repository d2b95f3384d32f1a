"""A judge that judges with an adapter on its model."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import ModelError
from ray_jobs.judging import adapter
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_local
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.stages import judge_actor

from .fakes import item
from .test_engine_judge import METRIC, FakeEngine


def test_every_request_names_the_adapter_and_judgements_are_kept_under_both_hashes(tmp_path: Path) -> None:
    file = tmp_path / "adapter.gguf"
    file.write_bytes(b"GGUF")
    engine = FakeEngine()
    for spec, name in ((None, None), (str(file), adapter.ADAPTER)):
        settings = JudgeSettings(model="m", adapter=spec)
        backend = open_local(engine, settings, "0" * 64)  # type: ignore[arg-type]
        engine.requests.clear()
        Judge(backend, settings, METRIC).judge([item()])
        assert {request.adapter for request in engine.requests} == {name}
        assert (backend.sha256 == "0" * 64) == (spec is None)


def test_the_engine_is_opened_with_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "adapter.gguf"
    file.write_bytes(b"GGUF")
    opened: list[Any] = []
    monkeypatch.setattr("serving.engine.Engine.open", lambda path, settings: opened.append(settings))
    monkeypatch.setattr("ray_jobs.export.base.resolve_gguf", lambda *_: tmp_path / "m.gguf")
    spec = {"own_models": {}, "engine": "{}"}
    judge_actor.open_engine(JudgeSettings(model="m", adapter=str(file)), spec)
    judge_actor.open_engine(JudgeSettings(model="m"), spec)
    assert [settings.adapters for settings in opened] == [{adapter.ADAPTER: str(file)}, {}]


def test_the_bundled_adapter_is_the_one_that_was_measured() -> None:
    content = adapter.adapter_path(adapter.BUNDLED).read_bytes()
    assert hashlib.sha256(content).hexdigest() == adapter.SHA256
    assert len(content) <= 8 * 10**6


def test_an_adapter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"judge\.adapter: absent\.gguf: no such file"):
        adapter.adapter_path("absent.gguf")
    monkeypatch.setattr(adapter, "FILE", tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="is not part of this installation"):
        adapter.adapter_path(adapter.BUNDLED)
