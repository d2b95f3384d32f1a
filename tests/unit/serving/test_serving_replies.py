"""Token probabilities where a character is more than one token."""

from __future__ import annotations

from typing import Any

from serving.calls import Alternative, Call, ChosenToken, Ended, Started, Text
from serving.engine import Sampling
from serving.replies import Reply, Route

PARROT = "🦜".encode()


def token(data: bytes) -> ChosenToken:
    one = Alternative(data.decode("utf-8", "replace"), data, -0.5)
    return ChosenToken(one, (one, Alternative("\ufffd", b"\xa0", -1.0)))


def choice_of(route: Route) -> dict[str, Any]:
    parts = [b"a", PARROT[:2], PARROT[2:], b"b"]
    reply = Reply(route=route, call=Call("x", None, Sampling(top_logprobs=2), None))
    text = Text(0, "a🦜b", tuple(map(token, parts)))
    whole = reply.whole([Started("m", "0" * 64, 1), text, Ended(0, "stop", 4, 0)])
    return dict(whole["choices"][0])


def test_the_bytes_of_chat_tokens_make_up_the_text() -> None:
    content = choice_of("chat")["logprobs"]["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == "a🦜b"
    assert content[1]["top_logprobs"][1]["bytes"] == [0xA0]


def test_completions_spell_parts_of_characters_and_count_whole_ones() -> None:
    logprobs = choice_of("completion")["logprobs"]
    assert logprobs["tokens"] == ["a", "bytes:\\xf0\\x9f", "bytes:\\xa6\\x9c", "b"]
    assert logprobs["top_logprobs"][1] == {"bytes:\\xf0\\x9f": -0.5, "bytes:\\xa0": -1.0}
    assert logprobs["text_offset"] == [0, 1, 1, 2]
