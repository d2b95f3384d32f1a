"""Loading: every row is accounted for, and a useless data set is refused by name."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_jobs.data.load import load_pairs, load_prompts
from ray_jobs.data.loaded import Loaded
from ray_jobs.data.report import describe
from ray_jobs.data.settings import Columns, Source, Winner
from ray_jobs.errors import DataError
from ray_jobs.records import Quarantined
from ray_jobs.runs import dump_json

GOOD = {"source": "x", "prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {**GOOD, "prompt": f"Hi {number}", **changes}


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def accounted(loaded: Loaded[Any]) -> bool:
    return loaded.num_rows_in == (
        len(loaded.rows) + len(loaded.quarantined) + sum(loaded.excluded.values()) + loaded.num_sampled_out
    )


def test_bad_rows_are_set_aside_with_number_reason_and_source(tmp_path: Path) -> None:
    rows = [
        pair(1),
        pair(2, chosen=""),
        pair(1, source="again"),
        7,
        pair(3, source="toxic"),
        pair(4, rejected="Hello"),
        pair(5, chosen="x" * 1_000_001),
        pair(6),
    ]
    loaded = load_pairs(Source(source=jsonl(tmp_path, rows), exclude_sources=("toxic",)), 0)
    assert loaded.quarantined == (
        Quarantined(2, "empty_chosen", "x"),
        Quarantined(3, "duplicate", "again"),
        Quarantined(4, "not_a_row", ""),
        Quarantined(6, "identical", "x"),
        Quarantined(7, "too_large", "x"),
    )
    assert loaded.row_numbers == (1, 8)
    assert loaded.excluded == {"toxic": 1}
    assert loaded.reasons["duplicate"] == 1
    assert loaded.num_rows_in == 8
    assert accounted(loaded)


@pytest.mark.parametrize("load", [load_pairs, load_prompts])
def test_what_cannot_be_written_is_set_aside_in_ids_and_sources_too(
    tmp_path: Path, load: Callable[[Source, int], Loaded[Any]]
) -> None:
    rows = [pair(1, id="\ud800x"), pair(2, source="b\udfff"), pair(3, id="fine", source="c")]
    loaded = load(Source(source=jsonl(tmp_path, rows)), 0)
    assert loaded.quarantined == (
        Quarantined(1, "lone_surrogate", "x"),
        Quarantined(2, "lone_surrogate", "b?"),
    )
    assert [row.id for row in loaded.rows] == ["fine"]
    assert [row.source for row in loaded.rows] == ["c"]
    dump_json(describe(Source(source="rows.jsonl"), loaded))


def test_rows_keep_their_own_ids(tmp_path: Path) -> None:
    loaded = load_pairs(Source(source=jsonl(tmp_path, [pair(1, id="a"), pair(2, id=7), pair(3, id=None)])), 0)
    assert [row.id for row in loaded.rows[:2]] == ["a", "7"]
    assert len(loaded.rows[2].id) == 16


def test_an_id_that_stands_twice_is_the_first_rows_alone(tmp_path: Path) -> None:
    rows = [pair(1, id=0), pair(1, id=0), pair(2, id=0), pair(3, id=1)]
    loaded = load_pairs(Source(source=jsonl(tmp_path, rows)), 0)
    plain = load_pairs(Source(source=jsonl(tmp_path, [pair(2)], "plain.jsonl")), 0)
    assert [row.id for row in loaded.rows] == ["0", plain.rows[0].id, "1"]
    assert loaded.reasons == {"duplicate": 1}
    assert (loaded.num_repeated_ids, plain.num_repeated_ids) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [{"prompt": "a", "chosen": "b"}] * 2,
            Columns(),
            "line 1: column 'rejected' is missing; the row has prompt",
        ),
        ([GOOD], Columns(chosen="best"), "line 1: column 'best' is missing"),
        ([{}], Columns(), "column 'chosen' is missing; the row has no column"),
        ([7, "x"], Columns(), "none of its 2 rows can be used (2 not_a_row); first: "),
        ([pair(1, chosen=""), pair(2, rejected=3)], Columns(), "(1 empty_chosen, 1 not_text); first: "),
        ([pair(1, source="toxic")], Columns(), "none of its 1 rows can be used (1 excluded)"),
        ([], Columns(), "holds no rows"),
        (
            [{"query": "a", "chosen": "The sky is", "rejected": "The sea is"}] * 2,
            Columns(),
            "column 'prompt' is missing; the row has query, chosen, rejected; column 'query' may hold the "
            "prompt; name it with columns.prompt",
        ),
        (
            [{"chosen": "The sky is", "rejected": "The sea is"}] * 4
            + [{"chosen": f"Yes {n}", "rejected": f"No {n}"} for n in range(2)],
            Columns(),
            "has no column for the prompt, and in 2 of 6 rows the answers begin with nothing in common",
        ),
        (
            [{"chosen": json.dumps([{"role": "user", "content": "x"}]), "rejected": "[]"}],
            Columns(),
            "a column of messages holds text",
        ),
        ([{**GOOD, " best": "x"}], Columns(chosen="best"), "has source, prompt, chosen, rejected, ' best'"),
        ([pair(1), pair(2)], Columns(source="origin"), "columns.source: no row has a column 'origin'"),
        (
            [pair(1, chosen=[{"role": "wizard", "content": "x"}])],
            Columns(),
            "bad_role 'wizard' (column 'chosen'); roles are system (developer), user",
        ),
    ],
)
def test_a_useless_data_set_is_an_error(
    tmp_path: Path, rows: list[Any], columns: Columns, message: str
) -> None:
    source = Source(source=jsonl(tmp_path, rows), columns=columns, exclude_sources=("toxic",))
    with pytest.raises(DataError) as caught:
        load_pairs(source, 0)
    assert message in str(caught.value)
    assert str(caught.value).startswith(source.source)


def test_a_missing_prompt_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'conversations' is missing; the row has text"):
        load_prompts(Source(source=jsonl(tmp_path, [{"text": "a"}])), 0)
    with pytest.raises(DataError, match="column 'ask' is missing; the row has text"):
        load_prompts(Source(source=jsonl(tmp_path, [{"text": "a"}]), columns=Columns(prompt="ask")), 0)


@pytest.mark.parametrize(
    ("sources", "columns", "says"),
    [
        (("toxic-dpo-v0.2", "a"), Columns(), "no row has the source 'toxic'; there are a, toxic-dpo-v0.2"),
        (("toxic", "b"), Columns(source="chosen"), "'toxic'; there are Hello"),
        (("", ""), Columns(), "'toxic'; no row names one in a column 'source'"),
    ],
)
def test_an_excluded_source_that_no_row_has_is_an_error(
    tmp_path: Path, sources: tuple[str, ...], columns: Columns, says: str
) -> None:
    path = jsonl(tmp_path, [pair(number, source=source) for number, source in enumerate(sources)])
    with pytest.raises(DataError) as caught:
        load_pairs(Source(source=path, columns=columns, exclude_sources=("toxic",), max_rows=1), 0)
    assert str(caught.value).startswith(f"{path}: exclude_sources: no row has the source ")
    assert says in str(caught.value)


def test_a_column_that_one_row_has_is_enough(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "answer": "x"}]
    loaded = load_prompts(Source(source=jsonl(tmp_path, rows), columns=Columns(answer="answer")), 0)
    assert [row.reference for row in loaded.rows] == [None, "x"]


def test_a_useless_data_set_comes_with_what_to_do(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "Hi"}
    rows = [pair(1, chosen=7), pair(2, chosen=[answer], rejected=[], prompt=[answer]), pair(3, rejected=None)]
    path = jsonl(tmp_path, [*rows, pair(4, rejected="")])
    with pytest.raises(DataError) as caught:
        load_pairs(Source(source=path), 0)
    assert str(caught.value) == (
        f"{path}: none of its 4 rows can be used (1 not_text, 3 empty_rejected); first: {path} line 2: "
        "empty_rejected (column 'rejected')"
    )


def test_a_sample_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    rows = [pair(number) for number in range(200)]
    forth = Source(source=jsonl(tmp_path, rows, "forth.jsonl"), max_rows=50)
    back = Source(source=jsonl(tmp_path, rows[::-1], "back.jsonl"), max_rows=50)
    first, again, other = load_pairs(forth, 1), load_pairs(back, 1), load_pairs(forth, 2)
    assert {row.id for row in first.rows} == {row.id for row in again.rows}
    assert {row.id for row in first.rows} != {row.id for row in other.rows}
    assert list(first.row_numbers) == sorted(first.row_numbers)
    assert (len(first.rows), first.num_sampled_out) == (50, 150)
    assert accounted(first)


def test_a_sample_reaches_every_part_of_the_data(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [pair(number) for number in range(100)])
    drawn = Counter(
        n for seed in range(60) for n in load_pairs(Source(source=path, max_rows=20), seed).row_numbers
    )
    assert sum(drawn.values()) == 1200
    assert len(drawn) == 100
    assert max(drawn.values()) <= 27  # 12 on average, 3.1 of standard deviation


def test_a_sample_larger_than_the_data_takes_all(tmp_path: Path) -> None:
    loaded = load_pairs(Source(source=jsonl(tmp_path, [pair(1), pair(2)]), max_rows=5), 0)
    assert (len(loaded.rows), loaded.num_sampled_out) == (2, 0)


def test_the_fingerprint_tells_any_change(tmp_path: Path) -> None:
    def fingerprint(*rows: Any) -> str:
        return load_pairs(Source(source=jsonl(tmp_path, list(rows))), 0).fingerprint

    base = fingerprint(pair(1), pair(2))
    assert base == fingerprint(pair(1), pair(2), pair(3, chosen=""))
    others = [
        fingerprint(pair(2), pair(1)),
        fingerprint(pair(1)),
        fingerprint(pair(1), pair(2, source="y")),
        fingerprint(pair(1), pair(2, rejected="no")),
        fingerprint(pair(1, id="a"), pair(2)),
    ]
    assert len({base, *others}) == 6


TALK = "\n\nHuman: Hi\n\nAssistant: Hello"
WRITTEN = (
    TALK,
    f"{TALK}\n\nHuman: Why?\n\nAssistant:",
    "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?",
    "Why is it so?",
    "Why is it so? Because.",
    '["a"]',
)
PLAIN = ("Hi", "", " ", "a\0", "\ud800", "Hello", "Why?")
TEXTS = st.sampled_from((*PLAIN, *WRITTEN)) | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": inner}
            ),
            max_size=4,
        )
    ),
    max_leaves=6,
)
USUAL = ("id", "prompt", "chosen", "rejected", "source", "conversations", "messages", "input", "system")
NAMES = (*USUAL, "labels", "tools", "a note", "\ud800")
ROW = st.dictionaries(
    st.sampled_from(NAMES),
    VALUES,
)
COLUMNS = st.sampled_from(
    [
        Columns(),
        Columns(prompt="prompt.0", chosen="chosen.content"),
        Columns(winner=Winner(column="labels", chosen=("Hi",), rejected=("Why?", True))),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW | VALUES, max_size=8),
    limit=st.none() | st.integers(1, 4),
    seed=st.integers(0, 9),
    columns=COLUMNS,
)
def test_whatever_the_rows_are_each_is_counted_once(
    tmp_path: Path, rows: list[Any], limit: int | None, seed: int, columns: Columns
) -> None:
    good: dict[str, Any] = {**GOOD, "chosen": "the one that is surely good", "labels": "Hi"}
    if columns.prompt:
        good |= {"prompt": ["Hi"], "chosen": {"content": good["chosen"]}}
    path = jsonl(tmp_path, [*rows, good, {**GOOD, "source": "Hi"}])
    source = Source(source=path, max_rows=limit, exclude_sources=("Hi",), columns=columns)
    for loaded in (load_pairs(source, seed), load_prompts(source, seed)):
        assert loaded.num_rows_in == len(rows) + 2
        assert accounted(loaded)
        dump_json(describe(source, loaded))
        assert len(loaded.row_numbers) == len(loaded.rows) <= (limit or len(rows) + 1)
        assert len({row.id for row in loaded.rows}) == len(loaded.rows)
        assert not {bad.row for bad in loaded.quarantined} & set(loaded.row_numbers)
