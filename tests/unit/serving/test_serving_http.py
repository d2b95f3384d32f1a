import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion import Completion
from serving_fakes import CHAT, SHA256, FakeBackend, app_over, chat, client_of, error_of, post, wait_until

from serving.admission import RateLimit, Refused
from serving.calls import Failed, Unavailable
from serving.http.gate import Gate
from serving.http.metrics import added, labelled, without_gauges
from serving.settings import GateSettings


def events_of(response: httpx.Response) -> list[str]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def test_a_chat_completion_is_openais() -> None:
    response = post(chat(n=2, logprobs=True, top_logprobs=1))
    reply = ChatCompletion.model_validate(response.json(), strict=True)
    assert [choice.message.content for choice in reply.choices] == ["red and blue"] * 2
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content is not None
    assert reply.choices[0].logprobs.content[0].top_logprobs[0].token == "x"
    assert reply.system_fingerprint == f"sha256:{SHA256}"
    assert response.headers["x-model-sha256"] == SHA256
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 6, 13)
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 5


def test_a_stream_is_openais() -> None:
    response = post(chat(stream=True, stream_options={"include_usage": True}))
    events = events_of(response)
    assert events[-1] == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(event, strict=True) for event in events[:-1]]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "red and blue"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == CompletionUsage.model_validate(
        {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 5},
        }
    )
    assert all("usage" in json.loads(event) for event in events[:-1]), "null but in the last"
    without = events_of(post(chat(stream=True)))
    assert not any('"usage"' in event for event in without)


def test_completions_are_openais() -> None:
    response = post({"prompt": ["a", "b"], "logprobs": 1}, "/v1/completions")
    reply = Completion.model_validate(response.json(), strict=True)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.tokens == ["red and blue"]
    events = events_of(post({"prompt": [1, 2, 3], "stream": True}, "/v1/completions"))
    texts = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
    assert "".join(texts) == "red and blue"
    events = events_of(post({"prompt": "x", "stream": True, "logprobs": 1}, "/v1/completions"))
    logprobs = [json.loads(event)["choices"][0]["logprobs"] for event in events[:-1]]
    assert [one["text_offset"] for one in logprobs if one] == [[0], [3], [7]]


def test_models_health_and_metrics() -> None:
    async def run() -> None:
        async with client_of(app_over(FakeBackend())) as client:
            models = (await client.get("/v1/models")).json()["data"]
            assert [Model.model_validate(each, strict=True).id for each in models] == ["champion", "base"]
            assert (await client.get("/v1/models/base")).json()["sha256"] == "cd" * 32
            assert error_of(await client.get("/v1/models/none"))["code"] == "model_not_found"
            assert (await client.get("/health")).json()["model_sha256"] == SHA256
            await client.post(CHAT, json=chat())
            await client.post(CHAT, json={})
            text = (await client.get("/metrics")).text
            assert 'serving_http_requests_total{route="chat",status="200"} 1' in text
            assert 'serving_http_requests_total{route="chat",status="400"} 1' in text
            assert "serving_http_inside 0" in text
            assert "engine_up 1" in text
        failing = FakeBackend(fail=Failed(503, "no", "unavailable"))
        async with client_of(app_over(failing)) as client:
            response = await client.get("/health")
            assert response.status_code == 503
            assert error_of(response)["code"] == "unavailable"

    asyncio.run(run())


def test_the_first_token_counts_not_the_start_of_a_stream() -> None:
    class Thinking(FakeBackend):
        async def _choices(self, call: Any) -> Any:
            await asyncio.sleep(0.1)
            async for events in super()._choices(call):
                yield events

    async def run() -> None:
        async with client_of(app_over(Thinking())) as client:
            await client.post(CHAT, json=chat(stream=True))
            lines = (await client.get("/metrics")).text.splitlines()
            (total,) = [line for line in lines if line.startswith("serving_http_first_token_seconds_sum")]
            assert float(total.split()[1]) >= 0.1

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [Unavailable(), TimeoutError(), Unavailable("why the engine is silent is not told")]
)
def test_models_of_an_engine_that_is_silent_are_503(error: Exception) -> None:
    class Silent(FakeBackend):
        async def models(self) -> Any:
            raise error

    async def run() -> None:
        async with client_of(app_over(Silent())) as client:
            for path in ("/v1/models", "/v1/models/champion"):
                response = await client.get(path)
                assert (response.status_code, response.headers["retry-after"]) == (503, "1")
                assert error_of(response)["code"] == "unavailable"
                assert "silent" not in response.text

    asyncio.run(run())


def test_metrics_of_several_parts_are_added_up() -> None:
    one = '# TYPE a counter\na 1\n# TYPE b gauge\nb{sha256="x"} 1\nb{le="0.5"} 0.25\n'
    other = '# TYPE a counter\na 2\n# TYPE b gauge\nb{sha256="y"} 1\nb{le="0.5"} 0.5\n'
    assert added([one, other]) == (
        '# TYPE a counter\na 3\n# TYPE b gauge\nb{sha256="x"} 1\nb{le="0.5"} 0.75\nb{sha256="y"} 1\n'
    )
    assert added([one]) == one
    assert without_gauges(one) == "# TYPE a counter\na 1\n"


def test_replicas_have_a_label_and_each_metric_one_place() -> None:
    texts = [f'# TYPE a counter\na {n}\n# TYPE b histogram\nb_bucket{{le="1"}} {n}\n' for n in (1, 2)]
    named = [labelled(text, "replica", name) for text, name in zip(texts, "xy", strict=True)]
    assert added(named) == (
        '# TYPE a counter\na{replica="x"} 1\na{replica="y"} 2\n# TYPE b histogram\n'
        'b_bucket{le="1",replica="x"} 1\nb_bucket{le="1",replica="y"} 2\n'
    )


def test_settings_of_a_request_reach_the_engine() -> None:
    backend = FakeBackend()
    body = chat(
        model="base", temperature=0.5, top_p=0.9, seed=-1, stop=["a", "b"], max_completion_tokens=5, n=2,
        presence_penalty=1, frequency_penalty=-1, logit_bias={"5": -100}, top_k=40, min_p=0.1,
        response_format={"type": "json_object"}, user="u", store=False, metadata={"a": "b"},
        service_tier="auto",
    )  # fmt: skip
    assert post(body, backend=backend).status_code == 200
    call = backend.calls[0]
    sampling = call.sampling
    assert (call.model, call.max_tokens, call.num_choices, call.stream) == ("base", 5, 2, False)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.seed) == (1, -1, 2**32 - 1)
    assert (sampling.stop, dict(sampling.logit_bias)) == (("a", "b"), {5: -100})
    assert json.loads(sampling.json_schema or "") == {"type": "object"}


def test_messages_are_the_turns_of_the_template() -> None:
    backend = FakeBackend()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "name": "ann",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": "c", "refusal": None},
    ]
    assert post({"messages": messages}, backend=backend).status_code == 200
    assert backend.calls[0].messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
    )
    assert backend.calls[0].sampling.temperature == 1.0
    assert backend.calls[0].model is None


BAD_BODIES = [
    (b"", None),
    (b"{", None),
    (b"[]", None),
    (b"null", None),
    (b"\xff\xfe{}", None),
    (b'{"messages": NaN}', None),
    (b'{"temperature": Infinity}', None),
    (b'{"temperature": 1e999}', None),
    (b'{"seed": ' + b"9" * 5000 + b"}", None),
    (b"[" * 10_000, None),
    (b'{"messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}", None),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None),
    (b'{"\\udfff": 1}', None),
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    (chat(n=10**6), "n"),
    (chat(n=0), "n"),
    (chat(n=True), "n"),
    (chat(max_tokens=0), "max_tokens"),
    (chat(max_tokens=10**9), "max_tokens"),
    (chat(max_tokens=1.5), "max_tokens"),
    (chat(stop=["x"] * 1000), "stop"),
    (chat(stop=[""]), "stop"),
    (chat(stop=["x" * 1000]), "stop"),
    (chat(temperature=99), "temperature"),
    (chat(temperature="1"), "temperature"),
    (chat(top_p=-0.1), "top_p"),
    (chat(top_logprobs=5), "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (chat(logit_bias={"x": 1}), "logit_bias.x"),
    (chat(logit_bias={str(i): 1 for i in range(1000)}), "logit_bias"),
    (chat(stream_options={"include_usage": True}), "stream_options"),
    (chat(tools=[{"type": "function"}]), "tools.0.function"),
    (chat(functions=[]), "functions"),
    (chat(grammar="root ::= x"), "grammar"),
    (chat(guided_regex="a*"), "guided_regex"),
    (chat(chat_template="{{ x }}"), "chat_template"),
    (chat(chat_template_kwargs={}), "chat_template_kwargs"),
    (chat(temprature=0), "temprature"),
    (chat(response_format={"type": "xml"}), "response_format.type"),
    (chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (chat(model="m" * 1000), "model"),
    (chat(**{"k" * 100_000: 1}), "k" * 64),
]


@pytest.mark.parametrize(("body", "param"), BAD_BODIES)
def test_bad_bodies_are_400_and_name_the_parameter(body: Any, param: str | None) -> None:
    backend = FakeBackend()
    response = post(body, backend=backend, limits={"max_answer_tokens": 1000})
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert error_of(response)["type"] == "invalid_request_error"
    assert not backend.calls


CODES = [
    ({}, "missing_required_parameter"),
    ({"messages": []}, "empty_array"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "missing_required_parameter"),
    (chat(temprature=0), "unknown_parameter"),
    (chat(temperature="1"), "invalid_type"),
    (chat(temperature=99), "decimal_above_max_value"),
    (chat(top_p=-1), "decimal_below_min_value"),
    (chat(n=0), "integer_below_min_value"),
    (chat(seed=2**70), "integer_above_max_value"),
    (chat(max_completion_tokens=10**9), "integer_above_max_value"),
    (chat(max_tokens=3, max_completion_tokens=4), "invalid_parameter_combination"),
    (chat(stop=["x"] * 1000), "array_above_max_length"),
    (chat(model="m" * 1000), "string_above_max_length"),
    (chat(functions=[]), "unsupported_parameter"),
    (chat(response_format={"type": "xml"}), "invalid_value"),
]


@pytest.mark.parametrize(("body", "code"), CODES)
def test_errors_have_openais_codes(body: Any, code: str) -> None:
    response = post(body, limits={"max_answer_tokens": 1000})
    assert (response.status_code, error_of(response)["code"]) == (400, code)


def test_null_is_no_use_of_what_is_not_supported() -> None:
    for name in ("functions", "function_call", "reasoning_effort", "web_search_options"):
        assert post(chat(**{name: None})).status_code == 200
    assert post({"prompt": "x", "suffix": None, "grammar": None}, "/v1/completions").status_code == 200
    assert error_of(post(chat(temprature=None)))["code"] == "unknown_parameter"


def test_the_smallest_top_p_leaves_the_likeliest_token() -> None:
    backend = FakeBackend()
    assert post(chat(top_p=0), backend=backend).status_code == 200
    assert 0 < backend.calls[0].sampling.top_p < 1e-3


def test_what_openais_client_has_parsed_may_come_back() -> None:
    called = {"name": "f", "arguments": "{}", "parsed_arguments": {}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": '{"a": 1}', "parsed": {"a": 1}},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": called}]},
    ]
    backend = FakeBackend()
    assert post({"messages": turns}, backend=backend).status_code == 200
    messages = backend.calls[0].messages or ()
    assert messages[1] == {"role": "assistant", "content": '{"a": 1}'}
    assert messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_both_words_for_the_length_may_say_the_same() -> None:
    backend = FakeBackend()
    assert post(chat(max_tokens=3, max_completion_tokens=3), backend=backend).status_code == 200
    assert backend.calls[0].max_tokens == 3
    over = error_of(post(chat(max_completion_tokens=9), limits={"max_answer_tokens": 8}))
    assert over["param"] == "max_completion_tokens"


SCHEMAS = [
    {"type": "string", "pattern": "(a+)+$"},
    {"$ref": "https://example.com/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"type": "string", "maxLength": 10**9},
    {
        "type": "object",
        "properties": {"x": {"type": "array", "items": {"type": "string"}, "minItems": 10**6}},
    },
    {"enum": ["x" * 20_000]},
    json.loads('{"items":' * 40 + "{}" + "}" * 40),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_schemas_that_reach_out_or_cost_much_are_refused(schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = post(chat(response_format=wanted))
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json_schema"


@pytest.mark.parametrize("value", [{"type": "string"}, True, {"default": {"pattern": "a"}}])
def test_a_property_may_be_called_pattern(value: object) -> None:
    schema = {"type": "object", "properties": {"pattern": value, "maxLength": value}, "required": ["pattern"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert post(chat(response_format=wanted)).status_code == 200


def test_a_schema_that_is_refused_says_where_and_why() -> None:
    price = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[0-9]+$"}]}
    for schema, message in (
        (
            {"properties": {"price": price}},
            "'pattern' is not supported in a schema (at properties.price.anyOf.1)",
        ),
        ({"patternProperties": {"^a": {}}}, "'patternProperties' is not supported in a schema"),
        ({"items": {"maxItems": 1025}}, "'maxItems' must not be above 1024 (at items)"),
    ):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert error_of(post(chat(response_format=wanted)))["message"] == message


def test_paths_and_methods() -> None:
    async def run() -> None:
        async with client_of(app_over(FakeBackend())) as client:
            for method, path, status in [
                ("GET", "/none", 404),
                ("GET", CHAT, 405),
                ("DELETE", "/v1/models", 405),
                ("POST", "/v1/embeddings", 404),
            ]:
                response = await client.request(method, path)
                assert response.status_code == status, path
                error_of(response)
            response = await client.post("/v1/embeddings", json={"input": "x"})
            assert "not offered" in error_of(response)["message"]

    asyncio.run(run())


def test_long_bodies_are_413_chunked_ones_too() -> None:
    async def chunks() -> Any:
        for _ in range(200):
            yield b"x" * 10_000

    async def run() -> None:
        backend = FakeBackend()
        async with client_of(app_over(backend)) as client:
            for content in (b"x" * 2_000_000, chunks()):
                response = await client.post(CHAT, content=content)
                assert response.status_code == 413
                assert error_of(response)["code"] == "body_too_long"
            assert not backend.calls
            assert (await client.post(CHAT, json=chat("x" * 900_000))).status_code == 200
            response = await client.post(CHAT, json=chat(), headers={"x-long": "x" * 100_000})
            assert response.status_code == 431
            error_of(response)

    asyncio.run(run())


def key_file(folder: Path, *, rate: str = "") -> str:
    path = folder / "keys"
    path.write_text(f"{hashlib.sha256(b'sk-good').hexdigest()}  alice {rate}\n")
    return str(path)


def test_without_a_key_only_health_is_answered(tmp_path: Path) -> None:
    async def run() -> None:
        app = app_over(FakeBackend(), gate={"api_keys_file": key_file(tmp_path)})
        async with client_of(app, client=("203.0.113.9", 1)) as client:
            paths = [
                CHAT,
                "/v1/completions",
                "/v1/models",
                "/metrics",
                "/docs",
                "/openapi.json",
                "/",
                "/-/routes",
            ]
            for path in [*paths, "/none"]:
                for headers in ({}, {"authorization": "Bearer sk-bad"}, {"authorization": "Basic !"}):
                    response = await client.post(path, headers=headers, json=chat())
                    assert response.status_code == 401, path
                    assert error_of(response)["code"] == "invalid_api_key"
                    assert response.headers["www-authenticate"]
            for page, scheme in (("/", "Basic"), ("/docs", "Basic"), ("/v1/models", "Bearer")):
                assert (await client.get(page)).headers["www-authenticate"].startswith(scheme)
            assert (await client.get("/health")).status_code == 200
            good = {"authorization": "Bearer sk-good"}
            assert (await client.post(CHAT, json=chat(), headers=good)).status_code == 200
            assert (await client.get("/v1/models", auth=("", "sk-good"))).status_code == 200

    asyncio.run(run())


PAGE = "https://app.example"
STAINLESS = "authorization,content-type,x-stainless-arch,x-stainless-os,x-stainless-retry-count"
"""What OpenAI's client for browsers sends."""


def test_pages_of_allowed_origins_may_call(tmp_path: Path) -> None:
    async def run() -> None:
        gate = {"api_keys_file": key_file(tmp_path), "cors_origins": [PAGE]}
        app = app_over(FakeBackend(), cors_origins=[PAGE], gate=gate)
        asks = {"access-control-request-method": "POST", "access-control-request-headers": STAINLESS}
        async with client_of(app) as client:
            for origin, status in ((PAGE, 200), ("https://evil.example", 400)):
                response = await client.options(CHAT, headers={**asks, "origin": origin})
                assert response.status_code == status
                assert (response.headers.get("access-control-allow-origin") == origin) == (status == 200)
            good = {"authorization": "Bearer sk-good", "origin": PAGE}
            response = await client.post(CHAT, json=chat(), headers=good)
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "x-model-sha256" in response.headers["access-control-expose-headers"]
            response = await client.post(CHAT, json=chat(), headers={"origin": PAGE})
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, PAGE)
            assert response.headers.get_list("vary") == ["Origin"]
            assert (await client.options("/v1/models")).status_code == 405

    asyncio.run(run())


@pytest.mark.parametrize(("origin", "readable"), [(PAGE, True), ("https://evil.example", False), ("", False)])
def test_pages_can_read_the_errors_of_the_proxies(
    monkeypatch: pytest.MonkeyPatch, origin: str, readable: bool
) -> None:
    """The gate there stands before an application with headers of its own, and before Serve's bare errors."""
    monkeypatch.setenv("SERVING_CORS_ORIGINS", f"{PAGE}, https://other.example")
    status = 200

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"access-control-allow-origin", PAGE.encode())] if status == 200 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        nonlocal status
        transport = httpx.ASGITransport(app=Gate(inner, GateSettings.from_env()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            long = await client.post(
                CHAT, content=b"{}", headers={"origin": origin, "content-length": "9999999"}
            )
            assert long.status_code == 413
            answered = await client.post(CHAT, content=b"{}", headers={"origin": origin})
            assert answered.headers.get_list("access-control-allow-origin") == [PAGE]
            status = 503
            bare = await client.post(CHAT, content=b"{}", headers={"origin": origin})
            for response in (long, bare):
                error_of(response)
                assert response.headers.get("access-control-allow-origin") == (origin if readable else None)
                assert (
                    "retry-after" in response.headers.get("access-control-expose-headers", "")
                ) == readable

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "https://app.example"}, 200),
        ({"origin": "https://behind.example", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://evil.example", "authorization": "Bearer sk-good"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:9999", "sec-fetch-site": "same-site"}, 403),
        ({"origin": "null", "content-type": "text/plain"}, 403),
    ],
)
def test_pages_of_other_origins_cannot_use_what_the_browser_adds(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async def run() -> None:
        gate = {"api_keys_file": key_file(tmp_path)}
        app = app_over(FakeBackend(), cors_origins=["https://app.example"], gate=gate)
        auth = None if "authorization" in headers else ("", "sk-good")
        async with client_of(app, auth=auth) as client:
            response = await client.post(CHAT, json=chat(), headers=headers)
            assert response.status_code == status
            if status == 403:
                assert error_of(response)["code"] == "origin_not_allowed"
                assert (await client.post("/votes", json={}, headers=headers)).status_code == 403
                assert (await client.get("/v1/models", headers=headers)).status_code == 200

    asyncio.run(run())


def test_a_missing_key_file_shuts_the_door(tmp_path: Path) -> None:
    response = post(chat(), gate={"api_keys_file": str(tmp_path / "none")})
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("::1", "[::1]:8000", 200),
        ("::ffff:127.0.0.1", "localhost:8000", 200),
        ("203.0.113.9", "127.0.0.1:8000", 401),
        ("127.0.0.1", "evil.example:8000", 401),
    ],
)
def test_without_keys_only_this_machine_is_answered(address: str, host: str, status: int) -> None:
    async def run() -> int:
        async with client_of(app_over(FakeBackend()), client=(address, 1)) as client:
            return (await client.post(CHAT, json=chat(), headers={"host": host})).status_code

    assert asyncio.run(run()) == status


def test_headers_that_lift_serves_limits_do_not_pass() -> None:
    seen: list[bytes] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await send(
            {"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]}
        )
        await send({"type": "http.response.body", "body": b"Traceback"})

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=Gate(inner, GateSettings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(
                "/",
                headers={
                    "X-Request-Timeout-Seconds": "0",
                    "X-Request-Disconnect-Disabled": "?1",
                    "serve_multiplexed_model_id": "x",
                    "X-Kept": "1",
                },
            )

    response = asyncio.run(run())
    assert b"x-kept" in seen
    assert not {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
    } & set(seen)
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"


def test_overload_is_429_with_retry_after() -> None:
    async def run() -> None:
        backend = FakeBackend()
        backend.hold = asyncio.Event()
        async with client_of(app_over(backend, capacity=2)) as client:
            held = [asyncio.ensure_future(client.post(CHAT, json=chat())) for _ in range(2)]
            await wait_until(lambda: backend.num_open == 2)
            response = await client.post(CHAT, json=chat())
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert error_of(response)["type"] == "rate_limit_error"
            backend.hold.set()
            assert [each.status_code for each in await asyncio.gather(*held)] == [200, 200]
            assert (await client.post(CHAT, json=chat())).status_code == 200

    asyncio.run(run())


def test_the_gate_refuses_what_is_too_much_before_reading_it() -> None:
    async def run() -> None:
        backend = FakeBackend()
        backend.hold = asyncio.Event()
        async with client_of(app_over(backend, gate={"max_inside": 1})) as client:
            held = asyncio.ensure_future(client.post(CHAT, json=chat()))
            await wait_until(lambda: backend.num_open == 1)
            response = await client.post(CHAT, content=b"{")
            assert (response.status_code, response.headers["retry-after"]) == (429, "1")
            assert error_of(response)["code"] == "overloaded"
            assert (await client.get("/health")).status_code == 200
            backend.hold.set()
            assert (await held).status_code == 200
            assert (await client.post(CHAT, json=chat())).status_code == 200

    asyncio.run(run())


def test_rates_are_per_key(tmp_path: Path) -> None:
    async def run() -> None:
        app = app_over(FakeBackend(), gate={"api_keys_file": key_file(tmp_path, rate="2")})
        async with client_of(app, headers={"authorization": "Bearer sk-good"}) as client:
            statuses = [(await client.post(CHAT, json=chat())).status_code for _ in range(3)]
            assert statuses == [200, 200, 429]

    asyncio.run(run())


def test_who_comes_back_when_told_is_not_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise Refused("too many", 5.4)

    monkeypatch.setattr(RateLimit, "take", refuse)
    assert post(chat()).headers["retry-after"] == "6"


@pytest.mark.parametrize(
    ("failed", "status"),
    [
        (Failed(400, "too long", "context_length_exceeded", "messages"), 400),
        (Failed(404, "none", "model_not_found", "model"), 404),
        (Failed(429, "full", "overloaded"), 429),
        (Failed(503, "none", "unavailable"), 503),
    ],
)
def test_failures_before_the_first_token_have_their_status_streaming_or_not(
    failed: Failed, status: int
) -> None:
    for stream in (False, True):
        response = post(chat(stream=stream), backend=FakeBackend(fail=failed))
        assert response.status_code == status
        assert error_of(response)["code"] == failed.code


def test_a_failure_in_a_stream_is_its_last_event() -> None:
    backend = FakeBackend(fail=Failed(500, "the model failed", "engine_failed"), fail_after=1)
    response = post(chat(stream=True), backend=backend)
    assert response.status_code == 200
    events = events_of(response)
    assert json.loads(events[-1])["error"]["code"] == "engine_failed"
    assert "[DONE]" not in events
    assert backend.num_open == 0


def test_a_bug_is_a_500_without_details() -> None:
    class Broken(FakeBackend):
        async def _choices(self, call: Any) -> Any:
            raise RuntimeError("secret")
            yield call

    whole = post(chat(), backend=Broken())
    assert whole.status_code == 500
    assert error_of(whole)["code"] == "internal_error"
    events = events_of(post(chat(stream=True), backend=Broken()))
    assert json.loads(events[-1])["error"]["code"] == "internal_error"
    assert "secret" not in whole.text + "".join(events)


def test_the_servers_deadline_ends_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.endpoint._GRACE_S", 0.0)

    async def run() -> None:
        for stream, status in ((False, 504), (True, 200)):
            backend = FakeBackend()
            backend.hold = asyncio.Event()
            async with client_of(app_over(backend, request_timeout_s=0.05)) as client:
                response = await client.post(CHAT, json=chat(stream=stream))
                assert response.status_code == status
                assert '"code":"timeout"' in response.text.replace('": "', '":"')
                assert backend.num_open == 0

    asyncio.run(run())


def scope_of(path: str = CHAT) -> dict[str, Any]:
    return {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        "scheme": "http", "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip


class Connection:
    """A client whose behaviour the test decides: when it goes, and when it stops reading."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body: bytes | None = json.dumps(body).encode()
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> Any:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, _: Any) -> None:
        await self.reads.wait()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_serve_cancels_is_a_client_that_has_gone(stream: bool) -> None:
    async def run() -> None:
        backend = FakeBackend()
        backend.hold = asyncio.Event()
        app = app_over(backend, capacity=1)
        client = Connection(chat(stream=stream))
        task = asyncio.ensure_future(app(scope_of(), client.receive, client.send))
        await wait_until(lambda: backend.num_open == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert backend.num_open == 0
        async with client_of(app) as again:
            text = (await again.get("/metrics")).text
            assert 'serving_http_requests_total{route="chat",status="499"} 1' in text
            assert 'status="500"' not in text
            assert "serving_http_disconnects_total 1" in text
            assert "serving_http_inside 0" in text

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_place(stream: bool) -> None:
    async def run() -> None:
        backend = FakeBackend()
        backend.hold = asyncio.Event()
        app = app_over(backend, capacity=1)
        client = Connection(chat(stream=stream))
        task = asyncio.ensure_future(app(scope_of(), client.receive, client.send))
        await wait_until(lambda: backend.num_open == 1)
        client.gone.set()
        await wait_until(lambda: backend.num_open == 0)
        await task
        async with client_of(app) as again:
            backend.hold.set()
            assert (await again.post(CHAT, json=chat())).status_code == 200

    asyncio.run(run())


def test_a_client_that_does_not_read_is_cut_off() -> None:
    async def run() -> None:
        backend = FakeBackend()
        backend.hold = asyncio.Event()
        app = app_over(backend, gate={"write_timeout_s": 0.02})
        client = Connection(chat(stream=True))
        task = asyncio.ensure_future(app(scope_of(), client.receive, client.send))
        await wait_until(lambda: backend.num_open == 1)
        client.reads.clear()
        backend.hold.set()
        await wait_until(lambda: backend.num_open == 0)
        await asyncio.gather(task, return_exceptions=True)
        assert not client.gone.is_set()

    asyncio.run(run())


def test_the_document_describes_the_requests() -> None:
    async def run() -> dict[str, Any]:
        async with client_of(app_over(FakeBackend())) as client:
            return dict((await client.get("/openapi.json")).json())

    document = asyncio.run(run())
    schema = document["components"]["schemas"]["ChatRequest"]
    assert schema["required"] == ["messages"]
    assert schema["additionalProperties"] is False
    assert document["paths"][CHAT]["post"]["requestBody"]["required"] is True


def test_the_chat_page_and_its_votes(tmp_path: Path) -> None:
    vote = {
        **chat("Which?"),
        "chosen": "red",
        "rejected": "blue",
        "chosen_model": "champion",
        "rejected_model": "base",
    }

    async def run() -> None:
        async with client_of(app_over(FakeBackend(), registry=str(tmp_path / "new"))) as client:
            page = await client.get("/")
            assert page.headers["content-type"].startswith("text/html")
            assert "https://" not in page.text, "nothing is loaded from elsewhere"
            assert (await client.post("/votes", json=vote)).status_code == 200
            assert (await client.post("/votes", json={**vote, "chosen": "blue"})).status_code == 400
            assert (await client.post("/votes", json={**vote, "messages": []})).status_code == 400

    asyncio.run(run())
    (row,) = map(json.loads, (tmp_path / "new" / "votes.jsonl").read_text().splitlines())
    asked = {"role": "user", "content": "Which?"}
    assert row["source"] == "votes"
    assert row["prompt"] == row["question"] == "Which?"
    assert row["chosen"] == [asked, {"role": "assistant", "content": "red"}]
    assert row["rejected"] == [asked, {"role": "assistant", "content": "blue"}]
