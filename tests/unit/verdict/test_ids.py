"""IDs as bytes, and texts as numbers: the same as with Python's strings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.verdict.coded import Coded, CodedBuilder
from ray_jobs.verdict.ids import NO_ROW, Ids

HARD = ["b", "a", "", "a\x00", "\x00", "\ud800", "\udfff", "\ue000", "\uffff", "\U0001f600", "é", "x" * 5000]
TEXTS = st.lists(st.one_of(st.sampled_from(HARD), st.text(st.characters(), max_size=3)), max_size=30)


def coded(texts: list[str | None]) -> Coded:
    builder = CodedBuilder()
    for text in texts:
        builder.add(text)
    return builder.build()


@given(TEXTS)
def test_ids_come_back_and_rise_as_strings_do(texts: list[str]) -> None:
    ids = Ids.of(texts)
    rising_B = ids.rising()
    assert [*ids] == texts
    assert [ids[row] for row in range(len(ids))] == texts
    assert [texts[row] for row in rising_B] == [*ids.take(rising_B)] == sorted(texts)
    assert ids.repeated(rising_B) == (len(set(texts)) < len(texts))


@given(TEXTS.map(lambda texts: list(dict.fromkeys(texts))), TEXTS)
def test_rows_are_found_by_their_ids(texts: list[str], others: list[str]) -> None:
    rows = {text: row for row, text in enumerate(texts)}
    ids = Ids.of(texts)
    assert ids.rows_of(Ids.of(others)).tolist() == [rows.get(text, NO_ROW) for text in others]
    assert ids.rows_of(Ids.of(texts)).tolist() == [*range(len(texts))]
    assert ids.same_as(Ids.of(others)) == (texts == others)


@given(st.lists(st.one_of(st.none(), st.sampled_from(HARD))))
def test_coded_texts_rise_and_are_counted(texts: list[str | None]) -> None:
    column = coded(texts)
    found = [text for text in texts if text is not None]
    assert list(column.texts) == sorted(set(found))
    assert [None if n == -1 else column.texts[n] for n in column.numbers_B] == texts
    assert column.counts() == {text: found.count(text) for text in sorted(set(found))}


def test_groups_are_rows_by_text() -> None:
    column = coded(["b", "a", "c", "b"])
    assert {text: rows.tolist() for text, rows in column.groups().items()} == {
        "a": [1],
        "b": [0, 3],
        "c": [2],
    }
    some = column.take(np.array([3, 2]))
    assert {text: rows.tolist() for text, rows in some.groups().items()} == {"b": [0], "c": [1]}
    assert coded([]).groups() == {}


def test_an_id_past_the_end_is_a_bug() -> None:
    with pytest.raises(IndexError):
        Ids.of(["a"])[1]
