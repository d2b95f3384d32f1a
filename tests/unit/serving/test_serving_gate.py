"""Slow clients, HEAD, and slashes at the end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from serving_fakes import CHAT, FakeBackend, app_over, chat, client_of
from uvicorn.config import Config
from uvicorn.server import ServerState

from serving.affinity import opening
from serving.calls import Call
from serving.engine import Sampling
from serving.http.gate import Gate
from serving.http.wire import BoundedProtocol
from serving.settings import GateSettings


@pytest.mark.parametrize("path", ["/health", "/", "/v1/models", "/metrics"])
def test_head_is_get_without_a_body(path: str) -> None:
    async def run() -> None:
        async with client_of(app_over(FakeBackend())) as client:
            head, get = await client.head(path), await client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == get.headers["content-type"]

    asyncio.run(run())


@pytest.mark.parametrize("header", [b"Basic \xff", b"Basic !", b"Basic /w==", b"Bearer \xff", b"\xff", b""])
def test_odd_authorizations_are_401(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "keys").write_text(f"{'0' * 64} alice\n")

    async def run() -> None:
        app = app_over(FakeBackend(), gate={"api_keys_file": str(tmp_path / "keys")})
        async with client_of(app) as client:
            response = await client.get("/v1/models", headers={b"authorization": header})
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"

    asyncio.run(run())


def test_a_bug_in_the_gate_is_a_500_of_our_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "_admit", lambda *_: 1 / 0)

    async def run() -> None:
        async with client_of(app_over(FakeBackend())) as client:
            response = await client.get("/health")
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "internal_error"

    asyncio.run(run())


def test_the_turns_of_a_chat_belong_together() -> None:
    turns = [{"role": role, "content": f"{number}"} for number, role in enumerate(("user", "assistant") * 3)]
    system = {"role": "system", "content": "Be brief."}

    def of(*messages: Any) -> str:
        return opening(Call("c", None, Sampling(), None, messages=messages))

    assert len({of(*turns[:count]) for count in (1, 3, 5)}) == 1
    assert len({of(system, *turns[:count]) for count in (1, 3, 5)}) == 1
    assert len({of(*turns), of(system, *turns), of(*turns[2:]), of(system), of()}) == 5


def test_a_slash_at_the_end_changes_nothing() -> None:
    async def run() -> None:
        async with client_of(app_over(FakeBackend())) as client:
            assert (await client.post(f"{CHAT}/", json=chat())).status_code == 200
            assert (await client.get("/v1/models/")).json() == (await client.get("/v1/models")).json()
            assert (await client.get("/none/")).status_code == 404

    asyncio.run(run())


def test_a_body_that_does_not_come_is_408() -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(10)

    async def run() -> None:
        backend = FakeBackend()
        async with client_of(app_over(backend, gate={"read_timeout_s": 0.05})) as client:
            response = await client.post(CHAT, content=slow())
            assert response.status_code == 408
            assert response.json()["error"]["code"] == "timeout"
            backend.hold = asyncio.Event()
            held = asyncio.ensure_future(client.post(CHAT, json=chat()))
            await asyncio.sleep(0.1)
            backend.hold.set()
            assert (await held).status_code == 200, "an answer may take longer than a request"

    asyncio.run(run())


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.written.partition(b"\r\n\r\n")[2])["error"])


def protocol_with(**settings: Any) -> tuple[BoundedProtocol, Wire]:
    """In a running loop."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    bounded = type("Bounded", (BoundedProtocol,), {"settings": GateSettings(**settings)})
    protocol, wire = bounded(Config(app, log_config=None), ServerState(), {}), Wire()
    protocol.connection_made(wire)
    return protocol, wire


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 100, 431, "headers_too_long"),
        (b"GET /" + b"y" * 100, 431, "headers_too_long"),
        (b"\x16\x03\x01", 400, "bad_http"),
        (b"GET / HTTP/1.1\r\nx: y", 408, "timeout"),
        (b"", 408, "timeout"),
    ],
)
def test_heads_that_are_too_long_wrong_or_late(data: bytes, status: int, code: str) -> None:
    async def run() -> None:
        protocol, wire = protocol_with(max_header_bytes=100, read_timeout_s=0.02)
        protocol.data_received(data)
        async with asyncio.timeout(5):
            while not wire.closed:
                await asyncio.sleep(0)
        assert wire.written.startswith(f"HTTP/1.1 {status} ".encode())
        assert wire.error["code"] == code

    asyncio.run(run())


def test_a_good_head_is_answered_and_the_clock_stops() -> None:
    async def run() -> None:
        protocol, wire = protocol_with(max_header_bytes=100, read_timeout_s=0.05)
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        assert wire.written.startswith(b"HTTP/1.1 204 ")
        assert not wire.closed
        protocol.connection_lost(None)

    asyncio.run(run())
