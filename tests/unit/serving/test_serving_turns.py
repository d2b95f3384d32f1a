"""Turns of a conversation, as other clients send them back."""

from __future__ import annotations

from typing import Any

import pytest
from serving_fakes import FakeBackend, chat, error_of, post

SENT_BACK = [
    {"role": "assistant", "content": "c", "reasoning_content": "hm", "provider_specific_fields": {"a": 1}},
    {"role": "assistant", "content": "c", "annotations": [], "audio": None, "function_call": None},
    {"role": "assistant", "content": None, "refusal": "c"},
    {"role": "assistant", "content": [], "refusal": "c"},
    {"role": "assistant", "content": [{"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}]},
]


@pytest.mark.parametrize("turn", SENT_BACK, ids=range(len(SENT_BACK)))
def test_what_other_clients_send_back_may_come(turn: dict[str, Any]) -> None:
    backend = FakeBackend()
    assert post({"messages": [turn]}, backend=backend).status_code == 200
    assert backend.calls[0].messages == ({"role": "assistant", "content": "c"},)


def test_calls_that_are_sent_back_may_have_what_others_gave_them() -> None:
    called = {"name": "f", "arguments": "", "provider_specific_fields": {}}
    call = {"id": "c" * 5000, "type": "function", "function": called, "extra_content": {"google": {}}}
    turns = [
        {"role": "assistant", "content": [], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c" * 5000, "content": "done"},
    ]
    backend = FakeBackend()
    assert post({"messages": turns}, backend=backend).status_code == 200
    asked, done = backend.calls[0].messages or ()
    assert asked["content"] == ""
    assert asked["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert asked["tool_calls"][0]["id"] == done["tool_call_id"]


DROPPED = [
    ({"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, "messages.0.content.0.type"),
    ({"content": [{"type": "input_audio", "input_audio": {}}]}, "messages.0.content.0.type"),
    ({"content": "x", "audio": {"id": "a"}}, "messages.0.audio"),
    ({"content": "x", "images": ["aGk="]}, "messages.0.images"),
    ({"content": "x", "function_call": {"name": "f", "arguments": "{}"}}, "messages.0.function_call"),
    ({"content": []}, "messages.0.content"),
    ({"content": None, "reasoning_content": "hm"}, "messages.0.content"),
]


@pytest.mark.parametrize(("turn", "param"), DROPPED, ids=range(len(DROPPED)))
def test_what_would_be_left_out_of_a_message_is_refused(turn: dict[str, Any], param: str) -> None:
    response = post({"messages": [{"role": "user", **turn}]})
    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_parameters_that_ask_for_nothing_may_stand_there() -> None:
    assert post(chat(logprobs=False, top_logprobs=0)).status_code == 200
    assert post(chat(reasoning_effort="none")).status_code == 200
    error = error_of(post(chat(reasoning_effort="high")))
    assert (error["param"], error["code"]) == ("reasoning_effort", "unsupported_parameter")


def test_no_answer_is_written_to_a_prompt_that_is_to_be_scored() -> None:
    backend = FakeBackend()
    body = {"prompt": [[1, 2]], "max_tokens": 0, "echo": True, "logprobs": 1}
    assert post(body, "/v1/completions", backend=backend).status_code == 200
    assert backend.calls[0].max_tokens == 0
    error = error_of(post({"prompt": "x", "max_tokens": 0}, "/v1/completions"))
    assert (error["param"], error["code"]) == ("max_tokens", "integer_below_min_value")
