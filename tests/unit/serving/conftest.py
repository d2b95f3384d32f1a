"""Backends over an engine that says what it is told."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any, cast

import pytest
from serving_fakes import Clock, FakeEngine

from serving.answering import HostBackend
from serving.calls import Call, Event
from serving.engine import CoreLease, Engine, EngineSettings, ModelLoadError, Sampling
from serving.host import ModelHost
from serving.registry import Registry


class HostOfWords:
    """Makes hosts whose model says `words` and has the given template."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def backend(self, words: str, *, template: str) -> HostBackend:
        file = self._folder / "model.gguf"
        file.write_text(words)
        registry = Registry(self._folder / "registry")
        registry.promote(file, sha256=hashlib.sha256(words.encode()).hexdigest(), run="local", report=file)
        host = ModelHost(
            registry,
            EngineSettings(pin=False),
            open_engine=lambda path, *_: cast("Engine", FakeEngine(path, template=template)),
        )
        host.follow()
        return HostBackend(host, registry)

    def __call__(self, words: str, *, template: str, **fields: Any) -> list[Event]:
        fields = {"messages": ({"role": "user", "content": "x"},), **fields}
        call = Call("c", None, Sampling(), None, **fields)
        backend = self.backend(words, template=template)

        async def run() -> list[Event]:
            return [event async for events in backend.generate(call) for event in events]

        return asyncio.run(run())


@pytest.fixture
def host_of_words(tmp_path: Path) -> HostOfWords:
    return HostOfWords(tmp_path)


@pytest.fixture
def opened() -> list[FakeEngine]:
    return []


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host(registry: Registry, opened: list[FakeEngine], clock: Clock) -> ModelHost:
    def open_engine(path: Path, _: EngineSettings, __: CoreLease | None) -> Engine:
        if path.read_text() == "bad":
            raise ModelLoadError(f"{path}: corrupt")
        opened.append(FakeEngine(path))
        return cast("Engine", opened[-1])

    return ModelHost(registry, EngineSettings(pin=False), open_engine=open_engine, clock=clock)
