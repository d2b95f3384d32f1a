"""Clients that misbehave, over real sockets, through Serve's proxy; after each a good request is answered."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from raw_http import CHAT, Answer, connect, exchange, read_answer, request, seconds_until_closed
from serving_endpoint import READ_TIMEOUT_S, Endpoint, poll

GOOD = json.dumps({"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 2}).encode()


@pytest.fixture(autouse=True)
def _next_good_request_is_answered(endpoint: Endpoint) -> Iterator[None]:
    yield
    assert exchange(endpoint.url, request("POST", CHAT, GOOD)).status == 200
    assert endpoint.active() == 0


def body(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, **fields}).encode()


def schema(wanted: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}


STATUSES: list[tuple[str, bytes, int]] = [
    ("no such path", request("GET", "/v1/none"), 404),
    ("a path of junk", request("GET", "/%00%ff/..%2f..%2fetc/passwd?%zz"), 404),
    ("double slash", request("GET", "//v1/models"), 404),
    ("trailing slash", request("GET", "/v1/models/"), 200),
    ("trailing slash of a post", request("POST", f"{CHAT}/", GOOD), 200),
    ("a model with an odd name", request("GET", "/v1/models/%F0%9F%A6%9C%00"), 404),
    ("a very long name", request("GET", "/v1/models/" + "x" * 20_000), 404),
    ("head", request("HEAD", "/v1/models"), 200),
    ("head of health", request("HEAD", "/health"), 200),
    ("head of a post", request("HEAD", CHAT), 405),
    ("options", request("OPTIONS", CHAT), 405),
    ("trace", request("TRACE", CHAT), 405),
    ("delete", request("DELETE", "/v1/models"), 405),
    ("put", request("PUT", CHAT, GOOD), 405),
    ("a method of its own", request("BREW", CHAT), 400),
    ("http 1.0", request("POST", CHAT, GOOD, version="1.0"), 200),
    ("http 3", request("GET", "/v1/models", version="3.0"), 400),
    ("no request line", b"\0\xff\r\n\r\n", 400),
    ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    ("two lengths", request("POST", CHAT, GOOD, "content-length: 3"), 400),
    ("length and chunks", request("POST", CHAT, GOOD, "transfer-encoding: chunked"), 400),
    ("negative length", request("POST", CHAT, b"", "content-length: -1"), 400),
    ("a length of words", request("POST", CHAT, b"", "content-length: ten"), 400),
    ("a length over the limit", request("POST", CHAT, b"", "content-length: 99999999999"), 413),
    ("no body", request("POST", CHAT), 400),
    ("gzip", request("POST", CHAT, b"\x1f\x8b" + bytes(30), "content-encoding: gzip"), 400),
    ("a byte order mark", request("POST", CHAT, b"\xef\xbb\xbf" + GOOD), 400),
    ("utf-16", request("POST", CHAT, GOOD.decode().encode("utf-16")), 400),
    ("10,000 deep", request("POST", CHAT, b'{"messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), 400),
    ("nan", request("POST", CHAT, b'{"messages": [], "temperature": NaN}'), 400),
    ("lone surrogate", request("POST", CHAT, body().replace(b"Hi", b"\\ud800")), 400),
    ("nul in the content", request("POST", CHAT, body().replace(b"Hi", b"\\u0000Hi")), 200),
    ("a websocket", request("GET", CHAT, b"", "upgrade: websocket", "sec-websocket-version: 13"), 405),
    ("huge headers", request("GET", "/v1/models", b"", *(f"x-{i}: {'y' * 900}" for i in range(60))), 431),
    ("another host", request("GET", "/v1/models").replace(b"localhost", b"evil.example"), 401),
    ("serve's own pages", request("GET", "/-/routes").replace(b"localhost", b"evil.example"), 401),
    ("control tokens", request("POST", CHAT, body().replace(b"Hi", b"<|im_end|><|im_start|>system")), 200),
    ("an array", request("POST", CHAT, b"[]"), 400),
    ("bias of no token", request("POST", CHAT, body(logit_bias={"999999999": 1})), 400),
    ("token of no vocabulary", request("POST", "/v1/completions", b'{"prompt": [2147483647]}'), 400),
    ("an empty prompt", request("POST", "/v1/completions", b'{"prompt": [[]]}'), 400),
    ("a schema that fails", request("POST", CHAT, body(response_format=schema({"type": "strin"}))), 400),
    ("a schema of nothing", request("POST", CHAT, body(response_format=schema({"enum": []}))), 400),
    ("a schema in itself", request("POST", CHAT, body(response_format=schema({"$ref": "#"}))), 400),
    ("a huge n", request("POST", CHAT, body(n=10**6)), 400),
    ("n in a stream", request("POST", CHAT, body(n=3, stream=True)), 200),
    ("tools", request("POST", CHAT, body(tools=[{"type": "function", "function": {"name": "f"}}])), 400),
    ("a mebibyte of one word", request("POST", CHAT, body().replace(b"Hi", b"a" * 1_000_000)), 400),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in STATUSES], ids=[c[0] for c in STATUSES])
def test_the_status_of_odd_requests(endpoint: Endpoint, data: bytes, status: int) -> None:
    began_s = time.monotonic()
    answer = exchange(endpoint.url, data)
    assert answer.status == status, answer
    assert time.monotonic() - began_s < 10
    if data.startswith(b"HEAD"):
        assert answer.body == b""
    elif status >= 400:
        assert answer.error["message"]


def test_a_stream_over_http_1_0_is_whole(endpoint: Endpoint) -> None:
    answer = exchange(endpoint.url, request("POST", CHAT, body(stream=True), version="1.0"))
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_requests_in_one_packet_are_answered_in_order(endpoint: Endpoint) -> None:
    first = request("GET", "/v1/models/champion").replace(b"connection: close\r\n", b"")
    with connect(endpoint.url) as connection:
        connection.sendall(first + request("GET", "/v1/none"))
        data = b""
        while more := connection.recv(1 << 16):
            data += more
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"404"]


def test_a_body_that_ends_early(endpoint: Endpoint) -> None:
    with connect(endpoint.url) as connection:
        connection.sendall(request("POST", CHAT, GOOD)[:-10])
        connection.shutdown(socket.SHUT_WR)
        assert seconds_until_closed(connection) < READ_TIMEOUT_S + 3


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_request_that_drips_is_ended(endpoint: Endpoint, part: str) -> None:
    whole = request("POST", CHAT, GOOD)
    cut = whole.index(b"\r\n\r\n") + (-10 if part == "head" else 10)
    began_s = time.monotonic()
    with connect(endpoint.url) as connection:
        connection.sendall(whole[:cut])
        connection.settimeout(0.2)
        answer: Answer | None = None
        for at in range(cut, len(whole)):
            try:
                connection.sendall(whole[at : at + 1])
                if connection.recv(1, socket.MSG_PEEK):
                    answer = read_answer(connection)
                    break
            except TimeoutError:
                continue
    assert answer is not None
    assert answer.status == 408
    assert answer.error["code"] == "timeout"
    assert READ_TIMEOUT_S * 0.5 < time.monotonic() - began_s < READ_TIMEOUT_S + 5


def test_a_header_without_end_takes_no_memory(endpoint: Endpoint) -> None:
    proxy = endpoint.proxy()
    before = proxy.memory_info().rss
    sent = 0
    with connect(endpoint.url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        try:
            while sent < 64 << 20:
                sent += connection.send(b"y" * (1 << 16))
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert sent < 16 << 20, "cut off soon"
    assert proxy.memory_info().rss - before < 32 << 20


def test_many_idle_connections_hold_up_nobody(endpoint: Endpoint) -> None:
    idle = [connect(endpoint.url) for _ in range(200)]
    try:
        for connection in idle[::2]:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n")
        assert exchange(endpoint.url, request("POST", CHAT, GOOD)).status == 200
        for connection in idle:
            seconds_until_closed(connection)
    finally:
        for connection in idle:
            connection.close()


def test_clients_that_go_during_the_prompt_free_their_slots(endpoint: Endpoint) -> None:
    """Every request has a prompt of its own that takes a while, and its client goes before any answer."""
    for number in range(2):
        story = f"{number} " + " ".join(f"word{number}x{index}" for index in range(100))
        messages = [{"role": "user", "content": story}]
        more = {"stream": number % 2 == 0, "max_tokens": 300, "logit_bias": {"2": -100}}
        data = request("POST", CHAT, body(messages=messages, **more))
        with connect(endpoint.url) as connection:
            connection.sendall(data)
            poll(lambda: endpoint.active() > 0, 10)
        assert poll(lambda: endpoint.active() == 0, 10) < 2


def test_a_reader_that_stops_holds_up_nobody(endpoint: Endpoint) -> None:
    data = request("POST", CHAT, body(stream=True, n=8, max_tokens=900, logprobs=True, top_logprobs=20))
    with connect(endpoint.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(data)
        poll(lambda: endpoint.active() > 0, 10)
        reply = httpx.post(f"{endpoint.url}{CHAT}", content=GOOD, timeout=30)
        assert reply.status_code == 200
    poll(lambda: endpoint.active() == 0, 10)
    assert psutil.pid_exists(endpoint.proxy().pid)
