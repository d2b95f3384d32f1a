"""Two replicas behind keys: what only shows with more than one replica, and with strangers at the door."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_http import CHAT
from serving_endpoint import Endpoint, poll, running

from serving.shadow_files import rows_of

QUESTION = {"messages": [{"role": "user", "content": "Name a colour."}]}
KEYS = {"alice": "sk-alice", "bob": "sk-bob"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Endpoint]:
    root = tmp_path_factory.mktemp("guarded")
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    (root / "keys").write_text(f"{digests['alice']} alice\n{digests['bob']} bob 3\n")
    engine = {"cores": 1, "pin": False, "slots": 4, "context_tokens": 1024}
    env = {"SERVING_API_KEYS_FILE": str(root / "keys")}
    shadow = {"model": "champion", "share": 1.0}
    with running(root, model_path, env=env, engine=engine, replicas=2, shadow=shadow) as found:
        yield found


@pytest.fixture
def client(guarded: Endpoint) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEYS['alice']}"}
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=60) as found:
        yield found


def metric(client: httpx.Client, name: str) -> int:
    """Of all replicas."""
    lines = client.get("/metrics").text.splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def test_strangers_get_401_everywhere_but_from_health(guarded: Endpoint) -> None:
    with httpx.Client(base_url=guarded.url) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/-/healthz").status_code == 200
        paths = ["/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/-/routes", "/none", "/health/x"]
        for path in paths:
            for headers in ({}, {"authorization": "Bearer sk-eve"}, {"authorization": b"Basic \xff"}):
                reply = stranger.get(path, headers=headers)
                assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key"), path
        assert stranger.post(CHAT, content=b"{").status_code == 401, "before the body is looked at"
        assert stranger.get("/v1/models", auth=("", KEYS["alice"])).status_code == 200


def test_the_rate_of_a_key(guarded: Endpoint) -> None:
    headers = {"authorization": f"Bearer {KEYS['bob']}"}
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=60) as bob:
        replies = [bob.post(CHAT, json={}) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [400, 400, 400, 429]
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 60


def cached_tokens(client: httpx.Client, number: int) -> int:
    """The fewest tokens of the second and third turn of a chat that were in the cache."""
    story = f"Chat {number}. " + " ".join(f"word{number * 100 + index}" for index in range(60))
    messages: list[dict[str, Any]] = [{"role": "user", "content": story}]
    cached = []
    for _ in range(3):
        reply = client.post(CHAT, json={"messages": messages, "max_tokens": 4, "temperature": 0}).json()
        cached.append(int(reply["usage"]["prompt_tokens_details"]["cached_tokens"]))
        messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
        messages.append({"role": "user", "content": "Go on."})
    return min(cached[1:])


def test_turns_of_a_chat_stay_with_their_cache_and_metrics_cover_all_replicas(client: httpx.Client) -> None:
    poll(lambda: metric(client, "serving_replicas") == 2, 60)
    numbers = itertools.count()
    # Serve's router may hear of the second replica later than the page of metrics does, and moves chats then.
    poll(lambda: cached_tokens(client, next(numbers)) > 100, 60)
    before = metric(client, "engine_requests_done_total")
    for _ in range(4):
        assert cached_tokens(client, next(numbers)) > 100
    assert metric(client, "engine_requests_done_total") - before >= 12


def test_a_new_champion_reaches_all_replicas(guarded: Endpoint, client: httpx.Client) -> None:
    path, sha256 = guarded.variant(3)
    guarded.promote(path, sha256)
    name = f'serving_champion_info{{sha256="{sha256}",replica='
    poll(lambda: client.get("/metrics").text.count(name) == 2, 60)
    assert metric(client, "serving_swaps_total") == 2


def test_shadow_answers_are_stored(guarded: Endpoint, client: httpx.Client) -> None:
    client.post(CHAT, json={**QUESTION, "max_tokens": 4})
    poll(lambda: bool(rows_of(guarded.registry.root)), 30)
    row = rows_of(guarded.registry.root)[0]
    assert set(row["answers"]) == {"champion", "shadow"}
    assert json.dumps(row["messages"]).startswith('[{"role": "user"')


def test_the_ingress_comes_back(guarded: Endpoint, client: httpx.Client) -> None:
    def answers() -> bool:
        try:
            return client.post(CHAT, json={**QUESTION, "max_tokens": 2}).status_code == 200
        except httpx.TransportError:
            return False

    (process,) = guarded.processes("ServeReplica:endpoint:ingress")
    process.kill()
    poll(lambda: not process.is_running() or process.status() == "zombie", 10)
    poll(answers, 60)
    assert httpx.get(f"{guarded.url}/-/routes").status_code == 401


def test_one_replica_of_two_goes_and_the_other_answers(guarded: Endpoint, client: httpx.Client) -> None:
    engines = guarded.engines()
    assert len(engines) == 2
    engines[0].kill()
    bodies = [{"messages": [{"role": "user", "content": f"Say {n}."}], "max_tokens": 2} for n in range(8)]

    def answers() -> bool:
        statuses = [client.post(CHAT, json=body).status_code for body in bodies]
        assert set(statuses) <= {200, 503}, statuses
        return set(statuses) == {200}

    poll(answers, 30)
    poll(lambda: metric(client, "serving_replicas") == 2, 60)
