"""Thousands of bad requests, made out of our own OpenAPI document: what it forbids is a 400."""

from __future__ import annotations

import asyncio
import json

import pytest
from serving_fakes import CHAT, FakeBackend, app_over, client_of

from benchmarks.bad_requests import GOOD, bad_requests, broken_bytes, validator_of


@pytest.mark.parametrize("path", list(GOOD))
def test_what_the_document_forbids_is_refused_and_nothing_breaks(path: str) -> None:
    async def run() -> tuple[int, int]:
        backend, num_refused, num_bodies = FakeBackend(), 0, 0
        async with client_of(app_over(backend)) as client:
            document = (await client.get("/openapi.json")).json()
            validator = validator_of(document, path)
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


def test_flipped_bytes_never_break_the_server() -> None:
    async def run() -> set[int]:
        statuses = set()
        async with client_of(app_over(FakeBackend())) as client:
            for data in broken_bytes(1000):
                statuses.add((await client.post(CHAT, content=data)).status_code)
        return statuses

    assert asyncio.run(run()) == {200, 400}
