"""The real thing: Serve, its proxies, the engine, a model, and the clients that people use."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest
from serving_endpoint import Endpoint, poll

from serving.engine.llamacpp.quality import next_token_logits
from serving.engine.llamacpp.sampling import logprob_of
from serving.files import sha256_of

QUESTION: list[Any] = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused", max_retries=0, timeout=60)


def test_engine_ingress_and_proxy_have_the_priority_of_any_other_program(endpoint: Endpoint) -> None:
    (engine,), (ingress,) = endpoint.engines(), endpoint.processes("ServeReplica:endpoint:ingress")
    given = psutil.Process(endpoint.process.pid).nice()
    assert {engine.nice(), ingress.nice(), endpoint.proxy().nice()} == {given}


def test_chat(client: openai.OpenAI, endpoint: Endpoint) -> None:
    reply = client.chat.completions.create(
        model="champion",
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=12,
        logprobs=True,
        top_logprobs=2,
    )
    choice = reply.choices[0]
    assert choice.message.content
    assert reply.system_fingerprint == f"sha256:{endpoint.champion()}"
    assert reply.usage is not None
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == reply.usage.completion_tokens
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(token.top_logprobs[0].logprob == token.logprob for token in choice.logprobs.content)


def test_a_stream_says_what_the_whole_reply_says(client: openai.OpenAI) -> None:
    options: Any = {"model": "champion", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_async_client(endpoint: Endpoint) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{endpoint.url}/v1", api_key="unused", max_retries=0
        ) as client:
            stream = await client.chat.completions.create(
                model="champion", messages=QUESTION, n=3, seed=5, max_tokens=8, stream=True
            )
            texts = ["", "", ""]
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            return texts

    first, again = asyncio.run(run()), asyncio.run(run())
    assert all(first)
    assert len(set(first)) > 1
    assert first == again, "the same seeds give the same answers"


def test_completions_stop_and_json(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="champion", prompt=["1 2 3 4", "a b c d"], temperature=0, max_tokens=8
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    whole = client.chat.completions.create(model="champion", messages=QUESTION, temperature=0, max_tokens=12)
    text = whole.choices[0].message.content or ""
    word = text.split()[2]
    cut = client.chat.completions.create(
        model="champion", messages=QUESTION, temperature=0, max_tokens=12, stop=[word]
    )
    assert cut.choices[0].message.content == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    shaped = client.chat.completions.create(
        model="champion",
        messages=QUESTION,
        max_tokens=40,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}},
    )
    answer = json.loads(shaped.choices[0].message.content or "")
    assert set(answer) == {"colour", "count"}
    assert answer["colour"] in ("red", "green")


def test_a_prompt_comes_back_with_how_likely_it_is(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """What evaluations of answers that are given (MMLU, HellaSwag, …) are made of."""
    asked: Any = {"model": "champion", "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    text = "The capital of France is Paris."
    tokens, logits = next_token_logits(str(endpoint.model), text)
    wanted = [logprob_of(logits[index], token, 0).logprob for index, token in enumerate(tokens[1:])]
    for prompt in (text, tokens):
        choice = client.completions.create(**asked, prompt=prompt).choices[0]
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert choice.text.startswith(text)
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.text_offset == [
            len("".join(logprobs.tokens[:index])) for index in range(len(logprobs.tokens))
        ]
        assert len(logprobs.tokens) == len(tokens) + 1
        assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
        assert logprobs.token_logprobs[1:-1] == pytest.approx(wanted, abs=0.2)
        assert all(len(top) == 2 for top in logprobs.top_logprobs[1:])
        scored = client.completions.create(**asked | {"max_tokens": 0}, prompt=prompt)
        assert (scored.choices[0].text, scored.choices[0].finish_reason) == (text, "length")
        assert scored.choices[0].logprobs is not None
        assert scored.choices[0].logprobs.token_logprobs == logprobs.token_logprobs[:-1]
        assert scored.usage is not None
        assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (len(tokens), 0)
    plain = client.completions.create(model="champion", prompt=text, echo=True, max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in plain).startswith(text)
    with pytest.raises(openai.BadRequestError, match="not streamed"):
        client.completions.create(**asked, prompt=text, stream=True)


def shaped_by(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "wanted", "schema": schema}}


def test_a_stream_holds_back_half_a_character_and_the_start_of_a_stop(client: openai.OpenAI) -> None:
    wanted = "grün 🦜🌈!"
    stream = client.chat.completions.create(
        model="champion",
        messages=QUESTION,
        response_format=shaped_by({"enum": [wanted]}),  # type: ignore[arg-type]
        stream=True,
        logprobs=True,
    )
    choices = [chunk.choices[0] for chunk in stream]
    texts = [choice.delta.content or "" for choice in choices]
    assert json.loads("".join(texts)) == wanted
    assert not any("\ufffd" in text for text in texts)
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()]
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode() == "".join(texts)
    options: Any = {"model": "champion", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**options).choices[0].message.content or ""
    for at in range(1, len(whole) - 4, 5):  # wherever token borders are
        stop = whole[at : at + 3]
        parts = client.chat.completions.create(**options, stop=stop, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in parts)
        assert text == whole[: whole.index(stop)], stop


def test_an_answer_may_have_a_recursive_shape(client: openai.OpenAI) -> None:
    rest = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
    node = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}, "next": rest},
        "required": ["n", "next"],
        "additionalProperties": False,
    }  # fmt: skip
    reply = client.chat.completions.create(
        model="champion",
        messages=QUESTION,
        temperature=0,
        max_tokens=400,
        response_format=shaped_by({"$defs": {"Node": node}, "$ref": "#/$defs/Node"}),  # type: ignore[arg-type]
    )
    text = reply.choices[0].message.content or ""
    assert text.startswith("{")
    if reply.choices[0].finish_reason == "stop":
        found = json.loads(text)
        while found is not None:
            assert found["n"] in (1, 2)
            found = found["next"]


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-none", messages=QUESTION)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    long: list[Any] = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="champion", messages=long, stream=True)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="not offered"):
        client.embeddings.create(model="champion", input="x")
    assert {model.id for model in client.models.list()} >= {"champion"}


def test_serves_own_pages_and_errors_have_our_form(endpoint: Endpoint) -> None:
    evil = {"host": "evil.example"}
    assert httpx.get(f"{endpoint.url}/-/routes", headers=evil).json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{endpoint.url}/-/healthz").status_code == 200
    chunked = httpx.post(f"{endpoint.url}/v1/chat/completions", content=(b"x" * 65536 for _ in range(64)))
    assert chunked.status_code == 413
    assert chunked.json()["error"]["code"] == "body_too_long"


@pytest.mark.parametrize("lifted", [False, True])
def test_a_disconnect_frees_the_slot_within_two_seconds(endpoint: Endpoint, lifted: bool) -> None:
    headers = {"x-request-disconnect-disabled": "?1", "x-request-timeout-seconds": "0"} if lifted else {}
    story = [{"role": "user", "content": "Tell a very long story about the sea. " * (10 if lifted else 1)}]
    body = {"messages": story, "stream": True, "max_tokens": 900, "logit_bias": {"2": -100}}
    poll(lambda: endpoint.active() == 0, 10)
    with httpx.stream(
        "POST", f"{endpoint.url}/v1/chat/completions", json=body, headers=headers, timeout=30
    ) as reply:
        lines = reply.iter_lines()  # held: the connection closes with it
        assert next(lines).startswith("data: ")
        poll(lambda: endpoint.active() == 1, 10)
    assert poll(lambda: endpoint.active() == 0, 10) < 2


def test_a_disconnect_of_a_request_that_does_not_stream(endpoint: Endpoint) -> None:
    body = {"messages": QUESTION, "max_tokens": 900, "logit_bias": {"2": -100}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=0.5)
    assert poll(lambda: endpoint.active() == 0, 10) < 2


def test_overload_is_429_or_an_answer(endpoint: Endpoint) -> None:
    body = {"messages": QUESTION, "max_tokens": 8, "temperature": 0}

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=60)

    with ThreadPoolExecutor(96) as pool:
        replies = list(pool.map(ask, range(96)))
    assert {reply.status_code for reply in replies} == {200, 429}
    refused = [reply for reply in replies if reply.status_code == 429]
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert all(set(reply.json()["error"]) == {"message", "type", "param", "code"} for reply in refused)
    assert ask(0).status_code == 200


async def keep_asking(url: str, done: asyncio.Event, models: list[str]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        while not done.is_set():
            stream = await client.chat.completions.create(
                model="champion", messages=QUESTION, max_tokens=16, stream=True
            )
            chunks = [chunk async for chunk in stream]
            written_by = {chunk.system_fingerprint for chunk in chunks}
            assert len(written_by) == 1, "a reply is wholly one model's"
            assert chunks[-1].choices[0].finish_reason in ("stop", "length")
            models.append(str(written_by.pop()))


def test_hot_swaps_under_load_fail_no_request(endpoint: Endpoint) -> None:
    async def run() -> None:
        done, models = asyncio.Event(), list[str]()
        clients = [asyncio.ensure_future(keep_asking(endpoint.url, done, models)) for _ in range(4)]
        hashes = [endpoint.champion()]
        for number in (1, 2):
            path, sha256 = endpoint.variant(number)
            await asyncio.to_thread(endpoint.promote, path, sha256)
            await asyncio.to_thread(poll, lambda wanted=sha256: endpoint.champion() == wanted, 60)
            hashes.append(sha256)
        corrupt = endpoint.registry.root.parent / "corrupt.gguf"
        corrupt.write_bytes(endpoint.model.read_bytes()[:1_000_000])
        promoted = len(models)
        await asyncio.to_thread(endpoint.promote, corrupt, sha256_of(corrupt), "corrupt")
        await asyncio.to_thread(poll, lambda: "not fit" in detail(endpoint), 60)
        assert endpoint.champion() == hashes[-1], "a corrupt champion never replaces one that works"
        await asyncio.to_thread(poll, lambda: len(models) > promoted + 4, 60)
        endpoint.registry.rollback()
        await asyncio.to_thread(poll, lambda: detail(endpoint) == "ok", 60)
        done.set()
        await asyncio.gather(*clients)
        order = [each.removeprefix("sha256:") for each in dict.fromkeys(models)]
        assert order == hashes

    asyncio.run(run())


def detail(endpoint: Endpoint) -> str:
    return str(httpx.get(f"{endpoint.url}/health", timeout=10).json()["detail"])


def test_earlier_champions_answer_by_name(client: openai.OpenAI, endpoint: Endpoint) -> None:
    earlier = endpoint.registry.history()[-1]
    name = f"{earlier.run}@{earlier.sha256[:8]}"
    reply = client.chat.completions.create(model=name, messages=QUESTION, max_tokens=4, temperature=0)
    assert reply.system_fingerprint == f"sha256:{earlier.sha256}"


def test_the_promote_command(endpoint: Endpoint) -> None:
    path, sha256 = endpoint.variant(7)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [
            sys.executable,
            "-m",
            "serving.promote",
            "--registry",
            str(endpoint.registry.root),
            *arguments,
        ]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    before = endpoint.champion()
    corrupt = path.with_name("bad.gguf")
    corrupt.write_bytes(b"GGUF" + bytes(100))
    refused = command(str(corrupt))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert command(str(path.with_name("none.gguf"))).returncode == 2
    assert endpoint.champion() == before
    assert command(str(path)).returncode == 0
    poll(lambda: endpoint.champion() == sha256, 60)
    assert sha256[:12] in command("status").stdout.splitlines()[0]
    assert command("rollback").returncode == 0
    poll(lambda: endpoint.champion() == before, 60)


def test_a_killed_replica_fails_only_what_ran_in_it(endpoint: Endpoint) -> None:
    body = {"messages": QUESTION, "stream": True, "max_tokens": 900, "logit_bias": {"2": -100}}
    with httpx.stream("POST", f"{endpoint.url}/v1/chat/completions", json=body, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        endpoint.kill_engine()
        events = [line.removeprefix("data: ") for line in lines if line]
    assert json.loads(events[-1])["error"]["code"] == "unavailable"
    assert "[DONE]" not in events

    def answers() -> bool:
        short = {"messages": QUESTION, "max_tokens": 2}
        reply = httpx.post(f"{endpoint.url}/v1/chat/completions", json=short, timeout=60)
        assert reply.status_code in (200, 503), reply.text
        return reply.status_code == 200

    poll(answers, 60)
