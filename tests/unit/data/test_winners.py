"""Pairs whose better answer stands in a column of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.data.load import load_pairs
from ray_jobs.data.settings import Columns, Source, Winner
from ray_jobs.data.winners import VERDICTS
from ray_jobs.errors import DataError

SIDES = {"chosen": "human_ref_A", "rejected": "human_ref_B"}


def shp(number: int, **changes: Any) -> dict[str, Any]:
    """As stanfordnlp/SHP has it."""
    row = {"history": f"Why {number}?", "human_ref_A": "first", "human_ref_B": "second", "labels": number % 2}
    return row | changes


def source(folder: Path, rows: list[Any], **columns: Any) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(source=str(path), columns=Columns(prompt="history", **columns))


def test_the_second_answer_is_chosen_where_it_is_better(tmp_path: Path) -> None:
    winner = Winner(column="labels", chosen=(1,), rejected=(0,))
    rows = [shp(0), shp(1), shp(2, labels="tie"), shp(3, labels=None), shp(4, labels="1"), shp(5, labels=0.0)]
    loaded = load_pairs(source(tmp_path, rows, **SIDES, winner=winner), 0)
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [
        ("second", "first"), ("first", "second"), ("first", "second"), ("second", "first"),
    ]  # fmt: skip
    assert loaded.reasons == {"no_preference": 2}
    assert loaded.used["labels"] == "winner"


@pytest.mark.parametrize(
    ("value", "winner"),
    [
        (-2, Winner(column="v", chosen=(-3, -2, -1), rejected=(1, 2, 3))),
        (True, Winner(column="v", chosen=(True,), rejected=(False,))),
        ("TRUE", Winner(column="v", chosen=(True,), rejected=(False,))),
        ("model_a", Winner(column="v", chosen=("model_a",), rejected=("model_b",))),
        ({"best": 1}, Winner(column="v.best", chosen=("1",), rejected=("2",))),
    ],
)
def test_values_are_compared_as_text(tmp_path: Path, value: Any, winner: Winner) -> None:
    loaded = load_pairs(source(tmp_path, [shp(1, v=value)], **SIDES, winner=winner), 0)
    assert loaded.rows[0].chosen == "first"


@pytest.mark.parametrize("name", [*VERDICTS, "Winner"])
def test_two_answers_are_no_pair_while_the_better_one_is_not_named(tmp_path: Path, name: str) -> None:
    rows = [shp(n) for n in range(4)]
    rows = [{name if key == "labels" else key: value for key, value in row.items()} for row in rows]
    example = f"columns.winner: {{column: {name}, chosen: [values for the first], rejected: "
    for columns, says in (
        ({}, f"if column {name!r} says which of two answers is better, name these with columns.chosen and"),
        (SIDES, f"line 1: which answer is better stands in column {name!r}; use "),
    ):
        with pytest.raises(DataError) as caught:
            load_pairs(source(tmp_path, rows, **columns), 0)
        assert says in str(caught.value)
        assert example in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("response_1", "response_2"), ("answerA", "answerB"), ("first_text", "second_text"), ("b", "a")],
)
def test_names_that_differ_in_a_letter_alone_say_nothing(tmp_path: Path, chosen: str, rejected: str) -> None:
    rows = [{"history": "Why?", chosen: "x", rejected: "y", "label": 1}]
    with pytest.raises(DataError, match=r"use columns\.winner"):
        load_pairs(source(tmp_path, rows, chosen=chosen, rejected=rejected), 0)


@pytest.mark.parametrize(
    ("names", "label"),
    [(("good", "bad"), 1), (("response_j", "response_k"), 1), (("x.0", "x.1"), 1), (("r1", "r2"), None)],
)
def test_names_that_say_which_is_better_need_no_winner(
    tmp_path: Path, names: tuple[str, str], label: int | None
) -> None:
    rows = [{"history": "Why?", "x": ["x", "y"], "label": label, names[0]: "x", names[1]: "y"}]
    assert load_pairs(source(tmp_path, rows, chosen=names[0], rejected=names[1]), 0).rows[0].chosen == "x"


def test_a_winners_column_that_no_row_has_is_named(tmp_path: Path) -> None:
    winner = Winner(column="best", chosen=(1,), rejected=(0,))
    with pytest.raises(DataError, match=r"columns\.winner\.column: no row has a column 'best'"):
        load_pairs(source(tmp_path, [shp(1)], **SIDES, winner=winner), 0)


@pytest.mark.parametrize(("chosen", "rejected"), [((1, 2), ("2",)), ((), ()), (([],), (1,))])
def test_a_winner_tells_two_answers_apart(chosen: Any, rejected: Any) -> None:
    with pytest.raises(ValidationError):
        Winner(column="labels", chosen=chosen, rejected=rejected)


def test_a_data_set_without_a_winner_is_written_down_as_ever() -> None:
    """Runs that were begun before there was any go on."""
    plain = Source(source="a/b").model_dump(mode="json")
    assert set(plain["columns"]) == set(Columns.model_fields) - {"winner"}
    named = Columns(winner=Winner(column="labels", chosen=(1, "a"), rejected=(False,)))
    again = Columns.model_validate_json(json.dumps(named.model_dump(mode="json")))
    assert again == named
