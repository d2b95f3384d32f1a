"""Bodies of the largest size, of which each part is wrong: they are refused as soon as the first is seen."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic_core import ErrorDetails
from serving_fakes import CHAT, chat, error_of, post

from serving import parsing

MEGABYTE = 1 << 20


def filled(before: str, item: str, after: str) -> bytes:
    """A body of the largest size, of as many of an item as fit."""
    count = (MEGABYTE - len(before) - len(after)) // (len(item) + 1)
    return f"{before}{','.join([item] * count)}{after}".encode()


TURN = '{"role":"user","content":"x"}'
VOTED = '"chosen_model":"c","rejected_model":"d"'
LONG = [
    ("/v1/completions", '{"prompt":[', "{}", "]}", "prompt"),
    ("/v1/completions", '{"prompt":[[', "{}", "]]}", "prompt"),
    ("/v1/completions", '{"prompt":[', "-1", "]}", "prompt.0"),
    (CHAT, '{"messages":[', "{}", "]}", "messages"),
    (CHAT, '{"messages":[{"role":"user","content":[', "0", "]}]}", "messages"),
    (CHAT, '{"messages":[{"role":"assistant","tool_calls":[', "{}", "]}]}", "messages"),
    (CHAT, f'{{"messages":[{TURN}],"tools":[', "{}", "]}", "tools"),
    (CHAT, f'{{"messages":[{TURN}],"stop":[', "0", "]}", "stop"),
    (CHAT, f'{{"messages":[{TURN}],"modalities":[', "0", "]}", "modalities.0"),
    ("/v1/responses", '{"input":[', "{}", "]}", "input"),
    ("/v1/responses", '{"input":[{"role":"user","content":[', "{}", "]}]}", "input"),
    ("/v1/responses", '{"input":"x","include":[', "0", "]}", "include.0"),
]


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many errors were looked at."""
    counts: list[int] = []
    choose = parsing._most_telling

    def count(errors: Sequence[ErrorDetails]) -> ErrorDetails:
        counts.append(len(errors))
        return choose(errors)

    monkeypatch.setattr(parsing, "_most_telling", count)
    return counts


@pytest.mark.parametrize(("path", "before", "item", "after", "param"), LONG, ids=range(len(LONG)))
def test_of_a_long_list_one_error_is_looked_for(
    collected: list[int], path: str, before: str, item: str, after: str, param: str
) -> None:
    """To collect those of a megabyte takes seconds, in which nobody else is answered, and a gigabyte."""
    response = post(filled(before, item, after), path)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert sum(collected) < 16


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        (CHAT, f'{{"messages":[{TURN}],', "}"),
        (CHAT, f'{{"messages":[{TURN}],"tools":[{{"type":"function","function":{{"name":"f",', "}}]}"),
        ("/v1/responses", '{"input":"x","text":{', "}}"),
        ("/votes", f'{{"messages":[{TURN}],"chosen":"a","rejected":"b",{VOTED},', "}"),
    ],
)
def test_of_many_unknown_names_one_is_told(collected: list[int], path: str, before: str, after: str) -> None:
    names = ",".join(f'"x{number}":0' for number in range(50_000))
    error = error_of(post(f"{before}{names}{after}".encode(), path))
    assert str(error["param"]).endswith("x0")
    assert error["code"] == "unknown_parameter"
    assert sum(collected) < 16


def test_no_more_parts_of_messages_than_the_limit() -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "x"}] * 3}
    limits = {"max_parts": 6}
    assert post({"messages": [turn] * 2}, limits=limits).status_code == 200
    error = error_of(post({"messages": [turn] * 3}, limits=limits))
    assert (error["param"], error["code"]) == ("messages", "array_above_max_length")
    assert post({"input": [turn | {"content": [{"type": "input_text", "text": "x"}] * 7}]}, "/v1/responses",
                limits=limits).status_code == 400  # fmt: skip


def test_numbers_of_any_size_are_looked_at() -> None:
    """Without those that look large there is no look at each."""
    for number in ("1e400", "1E+0400", "0.1e310", "9" * 400, "-" + "9" * 64):
        assert error_of(post(f'{{"messages":[{TURN}],"seed":{number}}}'.encode()))["code"] == "bad_json"
    for number in ("9" * 63, "1e30", "1e-400"):
        assert error_of(post(f'{{"messages":[{TURN}],"seed":{number}}}'.encode()))["code"] != "bad_json"
    assert post(chat("9" * 99 + " 1e999")).status_code == 200
