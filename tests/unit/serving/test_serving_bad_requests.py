"""Thousands of bad requests, made out of our own OpenAPI document: what it forbids is a 400."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from serving_fakes import CHAT, FakeBackend, app_over, chat, client_of

JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**60, 0.5, -1e308),
    *("", "x", "\0", "\u202e", "<|im_start|>", "9" * 300, "a" * 5000, "🦜" * 100),
    *([], [[]], [None], [0], ["x"], ["x"] * 1000, [{}]),
    *({}, {"": ""}, {"type": "text"}, {"$ref": "#"}, {"x": {"x": {"x": []}}}, {"include_usage": 1}),
    *({"5": 101}, {"-1": 1}, {"role": "user"}),
]
GOOD = {CHAT: chat(), "/v1/completions": {"prompt": "x"}}
SCHEMAS = {CHAT: "ChatRequest", "/v1/completions": "CompletionRequest"}


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at the path; a key that is not there is added."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    inner = copy[path[0]] if isinstance(copy, list) or path[0] in copy else {}
    copy[path[0]] = replaced(inner, path[1:], new)
    return copy


def bad_requests(path: str, document: dict[str, Any]) -> Iterator[Any]:
    """Every field with every kind of junk, in pairs too, then bodies that are no objects."""
    fields = list(document["components"]["schemas"][SCHEMAS[path]]["properties"])
    places: list[tuple[Any, ...]] = [(field,) for field in fields] + [("unknown",)]
    if path == CHAT:
        places += [("messages", 0, key) for key in ("role", "content", "name", "tool_calls", "x")]
        places += [("response_format", "type"), ("stream_options", "include_usage")]
    for place in places:
        yield from (replaced(GOOD[path], place, junk) for junk in JUNK)
    rng = random.Random(0)
    for _ in range(500):
        body = replaced(GOOD[path], rng.choice(places[: len(fields)]), rng.choice(JUNK))
        yield replaced(body, rng.choice(places[: len(fields)]), rng.choice(JUNK))
    yield from (junk for junk in JUNK if not isinstance(junk, dict))


@pytest.mark.parametrize("path", list(GOOD))
def test_what_the_document_forbids_is_refused_and_nothing_breaks(path: str) -> None:
    async def run() -> tuple[int, int]:
        backend, num_refused, num_bodies = FakeBackend(), 0, 0
        async with client_of(app_over(backend)) as client:
            document = (await client.get("/openapi.json")).json()
            components = json.loads(json.dumps(document).replace("#/components/schemas/", "#/$defs/"))[
                "components"
            ]
            schema = {"$defs": components["schemas"], "$ref": f"#/$defs/{SCHEMAS[path]}"}
            validator = jsonschema.Draft202012Validator(schema)
            for body in bad_requests(path, document):
                response = await client.post(path, content=json.dumps(body).encode())
                num_bodies += 1
                allowed = (200, 400) if validator.is_valid(body) else (400,)
                assert response.status_code in allowed, (body, response.text[:300])
                num_refused += response.status_code == 400
                if response.status_code == 400:
                    assert len(response.content) < 4096
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert (await client.post(path, json=GOOD[path])).status_code == 200
        assert backend.num_open == 0
        return num_refused, num_bodies

    num_refused, num_bodies = asyncio.run(run())
    assert num_refused > 1000
    assert num_refused < num_bodies, "some junk is harmless: the corpus is not refused wholesale"


def mutations(rng: random.Random) -> Iterator[bytes]:
    good = json.dumps(chat(stop=["x"], logit_bias={"1": 1})).encode()
    for _ in range(1000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b"\xff", b"\\ud800", b"NaN", b"1e999", b'"', b"[[", b"\0"]
            )
        yield bytes(data)


def test_flipped_bytes_never_break_the_server() -> None:
    async def run() -> set[int]:
        statuses = set()
        async with client_of(app_over(FakeBackend())) as client:
            for data in mutations(random.Random(1)):
                statuses.add((await client.post(CHAT, content=data)).status_code)
        return statuses

    assert asyncio.run(run()) == {200, 400}
