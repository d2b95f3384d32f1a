"""OpenAI's Responses API, read by OpenAI's own client and its own types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel
from serving_fakes import SHA256, FakeBackend, app_over, client_of

from serving.calls import Backend, Call, Ended, Failed, Started
from serving.http.errors import ApiError
from serving.lengths import check_lengths
from serving.responses.intake import read_request, response_call
from serving.settings import RequestLimits

PATH = "/v1/responses"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    "strict": True,
}
CALL = '{"name": "weather", "arguments": {"town": "Ur"}}'
TOOLS_TEMPLATE = (
    '{% if tools %}<tool_call>{"name": n, "arguments": a}</tool_call>{% endif %}'
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def served(backend: Any, use: Callable[[httpx.AsyncClient, openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    """What `use` returns, given a plain client and OpenAI's."""

    async def run() -> Any:
        async with client_of(app_over(backend)) as plain:
            client = openai.AsyncOpenAI(
                base_url="http://127.0.0.1:8000/v1", api_key="unused", max_retries=0, http_client=plain
            )
            return await use(plain, client)

    return asyncio.run(run())


def post(body: Any, backend: Any = None) -> httpx.Response:
    async def use(plain: httpx.AsyncClient, _: openai.AsyncOpenAI) -> httpx.Response:
        return await plain.post(PATH, json=body)

    response: httpx.Response = served(backend or FakeBackend(), use)
    return response


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Each event's name is its type; nothing follows the last one."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def accepted(**fields: Any) -> Call:
    body = {"input": "x", **fields}
    check_lengths(body, RequestLimits())
    asked = read_request(body)
    return response_call(asked, RequestLimits(), call_id="resp_1", deadline_s=9.0)


# Replies.


def test_a_response_is_openais() -> None:
    body = {
        "input": "Name a colour.",
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "max_output_tokens": 9,
    }
    reply = post(body)
    response = Response.model_validate(reply.json(), strict=True)
    assert (response.output_text, response.status) == ("red and blue", "completed")
    assert response.id.startswith("resp_")
    assert (response.model, response.metadata, response.instructions) == (
        "smoke@abababab",
        {"a": "b"},
        "Be brief.",
    )
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (
        7,
        3,
        10,
    )
    assert response.usage.input_tokens_details.cached_tokens == 5
    assert response.max_output_tokens == 9
    assert response.incomplete_details is response.error is None
    assert response.store is False  # type: ignore[attr-defined]
    assert reply.json()["system_fingerprint"] == f"sha256:{SHA256}"
    assert reply.headers["x-model-sha256"] == SHA256


def test_a_stream_tells_the_same_in_order() -> None:
    body = {"input": "Name a colour.", "stream": True, "include": ["message.output_text.logprobs"]}
    events = events_of(post(body))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events[4:7]] == ["red", " and", " blue"]
    assert [event["logprobs"][0]["top_logprobs"][0]["token"] for event in events[4:7]] == ["x"] * 3
    last = Response.model_validate(events[-1]["response"], strict=True)
    assert last.output_text == "red and blue"
    content: Any = last.output[0]
    assert [token.token for token in content.content[0].logprobs] == ["red", " and", " blue"]
    assert content.id == events[2]["item"]["id"] == events[5]["item_id"]
    assert events[0]["response"]["status"] == "in_progress"
    whole = post({**body, "stream": False}).json()
    changing = ("id", "created_at", "completed_at", "output")
    assert {name: whole[name] for name in whole if name not in changing} == {
        name: value for name, value in events[-1]["response"].items() if name not in changing
    }


def test_openais_client_reads_streams_and_parses_answers() -> None:
    class Colours(BaseModel):
        first: str
        count: int

    backend = FakeBackend('{"first": "red", "count": 2}')

    async def use(_: httpx.AsyncClient, client: openai.AsyncOpenAI) -> None:
        parsed = await client.responses.parse(model="champion", input="Two colours.", text_format=Colours)
        assert parsed.output_parsed == Colours(first="red", count=2)
        async with client.responses.stream(model="champion", input="x", text_format=Colours) as stream:
            texts = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert texts[-1] == final.output_text == '{"first": "red", "count": 2}'
        assert final.output_parsed == parsed.output_parsed

    served(backend, use)
    assert [json.loads(call.sampling.json_schema or "")["required"] for call in backend.calls] == [
        ["first", "count"]
    ] * 2


class Cut(FakeBackend):
    """Answers end at their greatest length."""

    async def generate(self, call: Call) -> Any:
        async for events in super().generate(call):
            yield [
                each._replace(finish_reason="length") if isinstance(each, Ended) else each for each in events
            ]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_is_incomplete(stream: bool) -> None:
    reply = post({"input": "x", "stream": stream}, Cut())
    last = events_of(reply)[-1] if stream else {"type": "response.incomplete", "response": reply.json()}
    assert last["type"] == "response.incomplete"
    response = Response.model_validate(last["response"], strict=True)
    assert (response.status, response.output[0].status) == ("incomplete", "incomplete")  # type: ignore[union-attr]
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


class Mute(FakeBackend):
    """Says nothing."""

    async def generate(self, call: Call) -> Any:
        yield [Started("smoke", SHA256, 7), Ended(0, "stop", 0, 0)]


def test_an_empty_answer_is_an_empty_message() -> None:
    response = Response.model_validate(post({"input": "x"}, Mute()).json(), strict=True)
    assert (len(response.output), response.output_text, response.status) == (1, "", "completed")


def test_a_stream_that_breaks_ends_with_failed_and_with_what_was_said() -> None:
    backend = FakeBackend(fail=Failed(503, "the replica is shutting down", "unavailable"), fail_after=2)
    last = events_of(post({"input": "x", "stream": True}, backend))[-1]
    assert last["type"] == "response.failed"
    response = Response.model_validate(last["response"], strict=True)
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("server_error", "the replica is shutting down")
    assert response.output_text == "red and"


def test_an_error_before_the_first_word_is_a_status_that_names_our_parameter() -> None:
    long = Failed(400, "too long", "context_length_exceeded", "messages")
    reply = post({"input": "x", "stream": True}, FakeBackend(fail=long))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "input"
    shape = Failed(400, "no such grammar", "bad_json_schema", "response_format")
    assert post({"input": "x"}, FakeBackend(fail=shape)).json()["error"]["param"] == "text.format"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_functions_are_items(host_of_words: Any, stream: bool) -> None:
    backend: Backend = host_of_words.backend(f"So. <tool_call>{CALL}</tool_call>", template=TOOLS_TEMPLATE)

    async def use(_: httpx.AsyncClient, client: openai.AsyncOpenAI) -> Response:
        asked: dict[str, Any] = {"model": "champion", "input": "x", "tools": [WEATHER]}
        if not stream:
            return await client.responses.create(**asked)
        async with client.responses.stream(**asked) as events:
            return await events.get_final_response()

    response: Response = served(backend, use)
    message, call = response.output
    assert (message.type, response.output_text.strip()) == ("message", "So.")
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"town": "Ur"}, "completed")
    assert response.status == "completed"


def test_a_streams_call_is_one_item_of_four_events(host_of_words: Any) -> None:
    backend = host_of_words.backend(f"<tool_call>{CALL}</tool_call>", template=TOOLS_TEMPLATE)
    events = events_of(post({"input": "x", "tools": [WEATHER], "stream": True}, backend))
    kinds = [event["type"].removeprefix("response.") for event in events[2:]]
    calls = ["function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds == ["output_item.added", *calls, "output_item.done", "completed"]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["function_call"]


# Requests.


def test_a_conversation_becomes_the_turns_of_a_chat() -> None:
    items = [
        {"role": "developer", "content": "In verse."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "Hot"}, {"type": "input_text", "text": " in Ur?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
            {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"town": "Ur"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"town": "Uruk"}',
         "id": "fc_2"},
        {"type": "function_call_output", "call_id": "c1", "output": "hot"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "mild"}]},
        {"role": "system", "content": "Be brief."},
    ]  # fmt: skip
    call = accepted(input=items, instructions="Be kind.", tools=[WEATHER])
    turns = call.messages or ()
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "tool", "system"]
    assert turns[0]["content"] == "Be kind.\n\nIn verse."
    assert turns[1]["content"] == "Hot in Ur?"
    assert turns[2]["content"] == "I look."
    assert [(each["id"], each["function"]) for each in turns[2]["tool_calls"]] == [
        ("c1", {"name": "weather", "arguments": {"town": "Ur"}}),
        ("c2", {"name": "weather", "arguments": {"town": "Uruk"}}),
    ]
    assert turns[4] == {"role": "tool", "content": "mild", "tool_call_id": "c2"}
    assert call.tools[0]["function"]["name"] == "weather"


def test_what_a_response_said_can_be_sent_back_as_it_came(host_of_words: Any) -> None:
    backend = host_of_words.backend(f"So. <tool_call>{CALL}</tool_call>", template=TOOLS_TEMPLATE)

    async def use(_: httpx.AsyncClient, client: openai.AsyncOpenAI) -> list[Any]:
        first = await client.responses.create(model="champion", input="x", tools=[WEATHER])  # type: ignore[list-item]
        return [item.model_dump() for item in first.output]

    output = served(backend, use)
    result = {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "hot"}
    turns = accepted(input=[{"role": "user", "content": "x"}, *output, result]).messages or ()
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
    assert turns[1]["tool_calls"][0]["id"] == turns[2]["tool_call_id"] == output[1]["call_id"]


def test_what_is_asked_for_reaches_the_engine() -> None:
    call = accepted(
        model="base",
        temperature=0,
        top_p=0.5,
        top_logprobs=3,
        max_output_tokens=5,
        seed=7,
        top_k=4,
        stop=["x"],
        user="ann",
        stream=True,
        store=True,
        truncation="auto",
        include=["reasoning.encrypted_content"],
        reasoning=None,
        previous_response_id=None,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
    )
    sampling = call.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_logprobs, sampling.seed) == (0, 0.5, 3, 7)
    assert (sampling.top_k, sampling.stop, sampling.json_schema) == (4, ("x",), '{"type": "object"}')
    assert (call.model, call.max_tokens, call.user, call.stream) == ("base", 5, "ann", True)
    assert accepted().sampling.top_logprobs is None
    assert accepted(include=["message.output_text.logprobs"]).sampling.top_logprobs == 0


def test_which_functions_may_be_called() -> None:
    clock = {"type": "function", "name": "clock", "parameters": {}, "strict": None}
    tools = [WEATHER, clock]

    def names(**fields: Any) -> tuple[list[str], bool]:
        call = accepted(tools=tools, **fields)
        return [tool["function"]["name"] for tool in call.tools], call.must_call

    some = {"type": "allowed_tools", "tools": [{"type": "function", "name": "clock"}]}
    assert names() == names(tool_choice="auto") == (["weather", "clock"], False)
    assert names(tool_choice="required") == (["weather", "clock"], True)
    assert names(tool_choice="none") == ([], False)
    assert names(tool_choice={"type": "function", "name": "weather"}) == (["weather"], True)
    assert names(tool_choice={**some, "mode": "auto"}) == (["clock"], False)
    assert names(tool_choice={**some, "mode": "required"}) == (["clock"], True)
    assert accepted(tools=tools, parallel_tool_calls=False).max_tool_calls == 1


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "invalid_type"),
    ({"input": []}, "input", "empty_array"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": ["x"]}, "input.0", "invalid_value"),
    ({"input": [{"type": "reasoning"}]}, "input", "invalid_value"),
    ({"input": [{"role": "user", "content": 5}]}, "input.0.content", "invalid_type"),
    ({"input": [{"role": "user"}]}, "input.0.content", "missing_required_parameter"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "invalid_value"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content.0.type",
        "invalid_value",
    ),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
        "input.0.arguments",
        "invalid_value",
    ),
    ({"input": [{"role": "user", "content": "x"}] * 1025}, "input", "array_above_max_length"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "invalid_value"),
    ({"tools": [WEATHER], "text": {"format": {"type": "json_object"}}}, "text.format", "unsupported_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "text.format.schema",
        "missing_required_parameter",
    ),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"pattern": "x"}}}},
        "text.format.schema",
        "invalid_json_schema",
    ),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"prompt": {"id": "x"}}, "prompt", "unsupported_parameter"),
    ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
    ({"messages": []}, "messages", "unsupported_parameter"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
    ({"surprise": 1}, "surprise", "unknown_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD, ids=range(len(BAD)))
def test_bad_requests_name_the_parameter(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        accepted(**fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_stored_responses_are_not_there() -> None:
    async def use(_: httpx.AsyncClient, client: openai.AsyncOpenAI) -> None:
        for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="not stored"):
                await ask("resp_1")

    served(FakeBackend(), use)


def test_requests_are_counted_by_route() -> None:
    async def use(plain: httpx.AsyncClient, _: openai.AsyncOpenAI) -> str:
        await plain.post(PATH, json={"input": "x"})
        return (await plain.get("/metrics")).text

    assert 'serving_http_requests_total{route="response",status="200"} 1' in served(FakeBackend(), use)
