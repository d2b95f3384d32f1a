"""OpenAI's Responses API from the real endpoint, with the real client."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from serving_endpoint import Endpoint

QUESTION = "Name a colour."


class Colour(BaseModel):
    colour: Literal["red", "green"]
    count: int


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused", max_retries=0, timeout=60)


def test_a_response_says_what_a_chat_completion_says(client: openai.OpenAI, endpoint: Endpoint) -> None:
    response = client.responses.create(
        model="champion",
        instructions="Answer in a word.",
        input=QUESTION,
        temperature=0,
        max_output_tokens=12,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    chat = client.chat.completions.create(
        model="champion",
        messages=[{"role": "system", "content": "Answer in a word."}, {"role": "user", "content": QUESTION}],
        temperature=0,
        max_completion_tokens=12,
    )
    assert response.output_text
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert (response.status == "incomplete") == (chat.choices[0].finish_reason == "length")
    item: Any = response.output[0]
    assert "".join(token.token for token in item.content[0].logprobs) == response.output_text
    assert response.model_extra is not None
    assert response.model_extra["system_fingerprint"] == f"sha256:{endpoint.champion()}"


def test_a_stream_says_what_the_whole_response_says(client: openai.OpenAI) -> None:
    asked: Any = {"model": "champion", "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{whole.status}"
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(texts) > 1
    assert "".join(texts) == whole.output_text
    last: Any = events[-1]
    assert last.response.output_text == whole.output_text
    assert last.response.usage.output_tokens == whole.usage.output_tokens  # type: ignore[union-attr]


def test_a_conversation_goes_on_with_the_items_it_was_given(client: openai.OpenAI) -> None:
    first = client.responses.create(model="champion", input=QUESTION, temperature=0, max_output_tokens=8)
    said: list[Any] = [{"role": "user", "content": QUESTION}, *first.output]
    second = client.responses.create(
        model="champion", input=[*said, {"role": "user", "content": "Another."}], max_output_tokens=8
    )
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 0, "the first turn is known to the engine"


def test_an_answer_has_the_shape_that_was_asked_for(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(
        model="champion",
        input=QUESTION,
        text_format=Colour,
        max_output_tokens=60,
        extra_body={"seed": 1},
    )
    assert isinstance(parsed.output_parsed, Colour)


def test_what_cannot_be_done_is_said(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send the whole conversation") as refused:
        client.responses.create(model="champion", input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model="champion", input="x " * 20000, stream=True)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="none", input="x")
    with pytest.raises(openai.BadRequestError) as tools:
        client.responses.create(
            model="champion",
            input="x",
            tools=[{"type": "function", "name": "f", "parameters": {}, "strict": None}],
        )
    assert tools.value.param == "tools"
