"""A backend without a model, and a client without a server."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from serving.answering import HostBackend
from serving.calls import (
    Alternative,
    Call,
    ChosenToken,
    Ended,
    Event,
    Failed,
    Health,
    ModelCard,
    Started,
    Text,
)
from serving.engine import Request, RequestError, Sampling, Stream
from serving.engine.types import Delta, Result
from serving.http.app import create_app
from serving.registry import BaseModel, Registry
from serving.settings import GateSettings, ServingSettings

SHA256 = "ab" * 32


class Clock:
    """Its time is told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeBackend:
    """Answers every choice with the words of `answer`; what it was asked is in `calls`."""

    def __init__(
        self, answer: str = "red and blue", *, fail: Failed | None = None, fail_after: int = 0
    ) -> None:
        self.words = answer.split(" ")
        self.fail, self.fail_after = fail, fail_after
        self.calls: list[Call] = []
        self.num_open = 0
        self.hold: asyncio.Event | None = None

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        self.calls.append(call)
        self.num_open += 1
        try:
            if self.fail is not None and self.fail_after == 0:
                yield [self.fail]
                return
            events: list[Event] = [Started("smoke@abababab", SHA256, 7)]
            if call.stream:
                yield events
            if self.hold is not None:
                await self.hold.wait()
            async for more in self._choices(call):
                if call.stream:
                    yield more
                events += more
            if not call.stream:
                yield events
        finally:
            self.num_open -= 1

    async def _choices(self, call: Call) -> AsyncGenerator[list[Event], None]:
        for choice in range(call.num_choices * max(1, len(call.prompts))):
            parts = self.words if call.stream else [" ".join(self.words)]
            for index, word in enumerate(parts):
                if self.fail is not None and index == self.fail_after:
                    yield [self.fail]
                    return
                text = word if index == 0 else f" {word}"
                token = ChosenToken(Alternative(text, text.encode(), -0.5), (Alternative("x", b"x", -1.0),))
                yield [Text(choice, text, None if call.sampling.top_logprobs is None else (token,))]
            yield [Ended(choice, "stop", len(self.words), 5)]

    async def models(self) -> list[ModelCard]:
        return [
            ModelCard("champion", SHA256, "smoke", 1700000000),
            ModelCard("base", "cd" * 32, "smoke", 1700000000),
        ]

    async def health(self) -> Health:
        return Health(self.fail is None, SHA256, "ok")

    async def metrics(self) -> str:
        return "engine_up 1\n"


class FakeEngine:
    """Says what its file holds, a letter at a time; `hold` keeps answers from ending."""

    opened: list[FakeEngine]
    context_tokens = 32

    def __init__(self, path: Path, *, template: str = "") -> None:
        self.model_path = path
        self.word = path.read_text()
        self.closed = threading.Event()
        self.streams: list[Stream] = []
        self.hold = False
        self.num_queued = 0
        self.chat = SimpleNamespace(source=template, render=lambda messages, **_: tuple(range(3)))
        self.tokenizer = SimpleNamespace(piece=lambda token: b"x")

    def tokenize(self, text: str, **_: Any) -> list[int]:
        return list(range(len(text)))

    def submit(self, request: Request) -> Stream:
        if len(request.prompt) >= self.context_tokens:
            raise RequestError("context_length_exceeded", "too long")
        stream = Stream(request, on_cancel=lambda stream: self.end(stream, "cancelled"))
        self.streams.append(stream)
        for letter in self.word:
            stream.push(Delta(letter))
        if not (self.hold and request.id != "smoke"):
            self.end(stream, "stop")
        return stream

    def end(self, stream: Stream, reason: Any) -> None:
        request, count = stream.request, len(self.word)
        stream.finish(
            Result(request.id, self.word, (1,) * count, reason, len(request.prompt), 1, count, 0.1, 0.1)
        )

    def metrics(self) -> Any:
        done = sum(stream.done for stream in self.streams)
        lines = [("requests_done_total", "counter", done), ("num_slots", "gauge", 4)]
        return SimpleNamespace(
            requests_queued=self.num_queued,
            num_slots=4,
            to_prometheus=lambda prefix: "".join(
                f"# TYPE {prefix}_{name} {kind}\n{prefix}_{name} {value}\n" for name, kind, value in lines
            ),
        )

    def close(self) -> None:
        self.closed.set()


class FailingEngine(FakeEngine):
    """One that says `bad` answers the smoke test, and nobody after that."""

    def end(self, stream: Any, reason: Any) -> None:
        super().end(stream, reason if stream.request.id == "smoke" or self.word != "bad" else "error")


def app_over(backend: FakeBackend, **settings: Any) -> FastAPI:
    gate = GateSettings.model_validate(settings.pop("gate", {}))
    capacity = settings.pop("capacity", 128)
    return create_app(backend, ServingSettings.model_validate(settings), gate=gate, capacity=capacity)


def client_of(
    app: FastAPI, *, client: tuple[str, int] = ("127.0.0.1", 5000), **options: Any
) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=client, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **options)


async def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0)


CHAT = "/v1/chat/completions"


def chat(content: str = "Name a colour.", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def promote(registry: Registry, word: str, base: str | None = None) -> str:
    def file(text: str) -> tuple[Path, str]:
        path = registry.root.parent / f"{text or 'empty'}.gguf"
        path.write_text(text)
        return path, hashlib.sha256(text.encode()).hexdigest()

    path, sha256 = file(word)
    kept = BaseModel(*file(base)) if base else None
    registry.promote(path, sha256=sha256, run="local", report=path, base=kept)
    return sha256


def call(**more: Any) -> Call:
    fields: dict[str, Any] = {"id": "c", "model": None, "sampling": Sampling(seed=7), "max_tokens": None}
    return Call(**{**fields, "messages": ({"role": "user", "content": "x"},), **more})


async def collect(backend: HostBackend, asked: Call) -> list[Event]:
    return [event async for events in backend.generate(asked) for event in events]


def post(
    body: Any, path: str = CHAT, *, backend: FakeBackend | None = None, **settings: Any
) -> httpx.Response:
    async def run() -> httpx.Response:
        async with client_of(app_over(backend or FakeBackend(), **settings)) as client:
            if isinstance(body, bytes):
                return await client.post(path, content=body)
            return await client.post(path, json=body)

    return asyncio.run(run())


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Every error has OpenAI's form, and nothing else."""
    assert len(response.content) < 4096
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])
