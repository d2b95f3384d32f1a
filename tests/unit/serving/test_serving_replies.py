"""Token probabilities where a character is more than one token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from serving.calls import Alternative, Call, ChosenToken, Ended, Started, Text
from serving.echo import echo_of
from serving.engine import Engine, Sampling, TokenLogprob
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


BOS = 1
PIECES = {BOS: b"<s>", 5: b"red", 6: b" sky"}


def echoed(prompt: str | tuple[int, ...], tokens: tuple[int, ...], *, scored: bool = True) -> list[Text]:
    """Of an engine whose vocabulary puts a token before texts."""
    tokenizer = SimpleNamespace(
        piece=PIECES.get,
        detokenize=lambda ids, special: b"".join(PIECES[token] for token in ids).decode(),
    )
    engine = SimpleNamespace(
        tokenizer=tokenizer,
        detokenize=lambda ids: b"".join(PIECES[token] for token in ids if token != BOS).decode(),
    )
    call = Call("x", None, Sampling(), None, prompts=("other", prompt), num_choices=2, echo=True)
    logprobs = tuple(TokenLogprob(token, -0.25, {}) for token in tokens[1:]) if scored else None
    return echo_of(call, 3, cast("Engine", engine), tokens, logprobs)


def test_an_echo_is_the_text_and_its_own_tokens() -> None:
    (text,) = echoed("red sky", (BOS, 5, 6))
    assert (text.choice, text.text) == (3, "red sky")
    assert [(each.token.text, each.token.logprob) for each in text.tokens or ()] == [
        ("red", -0.25),
        (" sky", -0.25),
    ]
    (ids,) = echoed((BOS, 5), (BOS, 5))
    assert ids.text == "<s>red", "what was given is what comes back"
    assert [(each.token.text, each.token.logprob) for each in ids.tokens or ()] == [
        ("<s>", None),
        ("red", -0.25),
    ]
    (bare,) = echoed("red sky", (5, 6), scored=False)
    assert (bare.text, bare.tokens) == ("red sky", None)
    assert (
        echo_of(Call("x", None, Sampling(), None, prompts=("a",)), 0, cast("Engine", None), (5,), None) == []
    )


def test_the_first_token_of_an_echo_has_no_logprob() -> None:
    (ids,) = echoed((5, 6), (5, 6))
    reply = Reply(route="completion", call=Call("x", None, Sampling(top_logprobs=1), None))
    whole = reply.whole([Started("m", "0" * 64, 2), ids._replace(choice=0), Ended(0, "stop", 0, 0)])
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None, -0.25]
    assert logprobs["top_logprobs"] == [None, {}]
    assert logprobs["text_offset"] == [0, 3]
