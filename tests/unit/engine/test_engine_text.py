"""Text release: whole characters, no stop strings, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.text import TextStream


@given(st.text(), st.lists(st.integers(1, 4), min_size=1))
def test_any_cut_of_the_bytes_gives_the_same_text(text: str, cuts: list[int]) -> None:
    data, stream, shown, at = text.encode("utf-8", "replace"), TextStream(), "", 0
    for index in range(len(data)):
        size = cuts[index % len(cuts)]
        part = stream.push(data[at : at + size])
        assert "\ufffd" not in part or "\ufffd" in text
        shown += part
        at += size
        if at >= len(data):
            break
    shown += stream.finish()
    assert shown == stream.text == data.decode()


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_end_the_text_where_they_first_begin_in_what_is_known(
    text: str, stops: list[str]
) -> None:
    stream = TextStream(stops)
    shown = "".join(stream.push(character.encode()) for character in text) + stream.finish()
    assert shown == stream.text
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stream.stopped == any(stop in text for stop in stops)
    if not stream.stopped:
        assert shown == text


def test_a_possible_start_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(("STOP",))
    assert [stream.push(piece) for piece in (b"go S", b"TO", b"RE ", b"S")] == ["go ", "", "STORE ", ""]
    assert stream.finish() == "S"


@pytest.mark.parametrize("pieces", [[b"\xf0\x9f", b"\x98\x80"], [b"\xf0", b"\x9f", b"\x98", b"\x80"]])
def test_half_a_character_waits_for_the_rest(pieces: list[bytes]) -> None:
    stream = TextStream()
    assert [stream.push(piece) for piece in pieces][:-1] == [""] * (len(pieces) - 1)
    assert stream.text == "😀"


def test_bytes_that_never_become_a_character_are_replaced_at_the_end() -> None:
    stream = TextStream()
    assert stream.push(b"a\xe2\x82") == "a"
    assert stream.finish() == "\ufffd"
