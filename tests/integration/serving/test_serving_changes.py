"""What changes by itself under a running endpoint: how many replicas there are, and which model answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_http import CHAT
from serving_endpoint import Endpoint, poll, running

from serving.files import sha256_of

SLOTS = 4
MIN_ANSWERS = 24


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Endpoint]:
    """A canary that gets the first champion, and a rule that takes every new one back after some answers."""
    first = f"local@{sha256_of(model_path)[:8]}"
    with running(
        tmp_path_factory.mktemp("changing"),
        model_path,
        engine={"cores": 1, "pin": False, "slots": SLOTS, "context_tokens": 1024},
        max_replicas=2,
        scaling_delay_s=0.3,
        request_timeout_s=300,
        canary={"model": first, "share": 0.5},
        rollback={"window_s": 600, "min_answers": MIN_ANSWERS, "max_first_token_s": 1e-6},
    ) as found:
        yield found


def num_replicas(endpoint: Endpoint) -> int:
    return endpoint.metric("serving_replicas")


WHOLE = (200, "data: [DONE]")


async def stream(client: httpx.AsyncClient, number: int) -> tuple[int, str]:
    """A long answer: its status, and the last line."""
    messages = [{"role": "user", "content": f"Chat {number}: count as far as you can."}]
    body = {"messages": messages, "stream": True, "max_tokens": 900, "logit_bias": {"2": -100}}
    async with client.stream("POST", CHAT, json=body) as reply:
        return reply.status_code, [line async for line in reply.aiter_lines() if line][-1]


@pytest.mark.long
def test_load_starts_a_replica_and_answers_are_finished_when_it_is_stopped(changing: Endpoint) -> None:
    """Two chats that go on are too few for two replicas: the one that has to go writes its answers first."""

    async def run() -> None:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=changing.url, timeout=300, limits=limits) as client:
            crowd = [asyncio.ensure_future(stream(client, number)) for number in range(3 * SLOTS)]
            await asyncio.to_thread(poll, lambda: changing.active() == SLOTS, 60)
            assert httpx.get(f"{changing.url}/health", timeout=10).status_code == 200, "full, and healthy"
            assert [card["id"] for card in httpx.get(f"{changing.url}/v1/models").json()["data"]]
            await asyncio.to_thread(poll, lambda: num_replicas(changing) == 2, 200)
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
            few = [asyncio.ensure_future(stream(client, number)) for number in range(2)]
            await asyncio.to_thread(poll, lambda: num_replicas(changing) == 1, 200)
            assert await asyncio.gather(*few) == [WHOLE, WHOLE]

    assert num_replicas(changing) == 1
    asyncio.run(run())


def written_by(endpoint: Endpoint, user: str) -> str:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "user": user}
    reply = httpx.post(f"{endpoint.url}{CHAT}", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.json()["system_fingerprint"] == f"sha256:{reply.headers['x-model-sha256']}"
    return reply.headers["x-model-sha256"]


def test_a_canary_keeps_its_users_and_a_champion_that_is_late_is_taken_back(changing: Endpoint) -> None:
    first = changing.champion()
    path, second = changing.variant(1)
    changing.promote(path, second)
    poll(lambda: changing.champion() == second, 60)
    users = [f"user {number}" for number in range(MIN_ANSWERS // 2)]
    models = [written_by(changing, user) for user in users]
    assert set(models) == {first, second}
    assert [written_by(changing, user) for user in users] == models, "a user stays with a model"
    (user,) = users[models.index(second) : models.index(second) + 1]
    for _ in range(MIN_ANSWERS):
        written_by(changing, user)
    poll(lambda: changing.champion() == first, 60)
    (taken,) = changing.registry.rollbacks()
    assert taken["from"] == second
    assert "answers began later than 1e-06 s" in taken["reason"]
    assert {written_by(changing, user) for user in users} == {first}
    assert json.loads(changing.registry.file.read_bytes())["sha256"] == first
