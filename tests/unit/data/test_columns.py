"""Which column holds what: an invented prompt is refused where another column may hold the real one."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.columns import ABSENT, find, may_hold_prompt
from ray_jobs.data.load import load_pairs, load_prompts
from ray_jobs.data.report import column_line, describe, first_lines
from ray_jobs.data.settings import Columns, Source
from ray_jobs.errors import DataError

SQL = [{"chosen": f"SELECT count(*) FROM t{n}", "rejected": f"SELECT * FROM t{n}"} for n in range(20)]


def written(folder: Path, rows: list[Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "name",
    ["utterance", "Prompt", "Question", "history", "message", "user_prompt", "UserInput", "Frage", "x"],
)
def test_a_prompt_is_never_invented_beside_a_column_that_may_hold_it(tmp_path: Path, name: str) -> None:
    rows = [{name: f"How many rows in t{n}?", **row} for n, row in enumerate(SQL)]
    with pytest.raises(DataError) as caught:
        load_pairs(Source(source=written(tmp_path, rows)), 0)
    assert str(caught.value).endswith(f"; column {name!r} may hold the prompt; name it with columns.prompt")
    assert "\n" not in str(caught.value)
    loaded = load_pairs(Source(source=written(tmp_path, rows), columns=Columns(prompt=name)), 0)
    assert (loaded.rows[3].prompt[0].content, loaded.rows[3].chosen) == (
        "How many rows in t3?",
        SQL[3]["chosen"],
    )


@pytest.mark.parametrize(
    "beside",
    [
        {"id": "row one", "source": "made by hand"},
        {"label": "better one", "category": "blue colour", "topic": "machine learning"},
        {"Unnamed: 0": "7", "length": "12.5", "score": 3, "tags": ["a b"], "difficulty": "hard"},
        {"prompt_id": "a b", "system_prompt": "Be brief.", "chosen_model": "gpt 4", "note": "from a book"},
        {"text": "", "message": None},
    ],
)
def test_what_is_no_prompt_stands_in_the_way_of_none(tmp_path: Path, beside: dict[str, Any]) -> None:
    loaded = load_pairs(Source(source=written(tmp_path, [{**row, **beside} for row in SQL])), 0)
    assert {row.prompt[-1].content for row in loaded.rows} == {"SELECT"}


def test_of_several_columns_the_likeliest_is_named() -> None:
    row = {"remark": "some long text", "Query": "Hi", "turns": [{"role": "user", "content": "x"}]}
    assert may_hold_prompt(row, set()) == "Query"
    assert may_hold_prompt(row, {"Query"}) == "remark"
    assert may_hold_prompt({"turns": row["turns"]}, set()) == "turns"
    assert may_hold_prompt({"frage": "\u4f60\u597d"}, set()) == "frage"


def test_a_prompt_is_never_invented_where_its_column_is_named(tmp_path: Path) -> None:
    rows = [{**row, **({"asked": "How many?"} if n % 2 else {})} for n, row in enumerate(SQL)]
    loaded = load_pairs(Source(source=written(tmp_path, rows), columns=Columns(prompt="asked")), 0)
    assert {row.prompt[0].content for row in loaded.rows} == {"How many?"}
    assert loaded.reasons == {"empty_prompt": 10}


def test_a_prompts_column_of_another_name_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, [{"id": n, "text": f"Question {n}"} for n in range(3)])
    with pytest.raises(DataError, match=r"column 'text' may hold the prompt; name it with columns\.prompt"):
        load_prompts(Source(source=path), 0)


def test_a_path_leads_into_values() -> None:
    row = {"a": {"b": [{"c": 1}, {"c": 2}]}, "a.b": 3, "d": "text"}
    assert find(row, "a.b") == 3
    assert [find(row, name) for name in ("a.b.0.c", "a.b.-1.c")] == [1, 2]
    for name in ("e", "a.x", "a.b.2", "a.b.0.c.d", "d.0", "a.b.one", ".", "a."):
        assert find(row, name) is ABSENT


def test_a_part_of_a_path_that_is_missing_is_told_like_a_column(tmp_path: Path) -> None:
    path = written(tmp_path, [{"input": {"text": "Hi"}, "chosen": "a", "rejected": "b"}])
    with pytest.raises(
        DataError, match=r"column 'input\.messages' is missing; the row has input, chosen, rej"
    ):
        load_pairs(Source(source=path, columns=Columns(prompt="input.messages")), 0)
    with pytest.raises(DataError, match=r"columns\.source: no row has a column 'input\.source'"):
        load_pairs(Source(source=path, columns=Columns(prompt="input.text", source="input.source")), 0)


def test_it_is_told_what_the_columns_were_read_as(tmp_path: Path) -> None:
    rows = [
        {"id": n, "question": f"Who is {n}?", "context": "…", "chosen": "a", "rejected": "b"}
        for n in range(3)
    ]
    source = Source(source=written(tmp_path, rows))
    found = describe(source, load_pairs(source, 0))
    assert column_line(found) == ("columns used: id, question -> prompt, chosen, rejected; not used: context")
    assert first_lines(found) == ['user: "Who is 0?"', 'chosen: "a"', 'rejected: "b"']
    deep = Source(
        source=written(
            tmp_path, [{"input": {"messages": [{"role": "user", "content": "x" * 300}]}, "s": "t"}]
        ),
        columns=Columns(prompt="input.messages", source="s"),
    )
    found = describe(deep, load_prompts(deep, 0))
    assert column_line(found) == "columns used: input -> prompt, s -> source"
    assert first_lines(found) == [f'user: "{"x" * 200}"']


def test_a_prompt_that_the_answers_overrule_is_told_as_not_used(tmp_path: Path) -> None:
    sides = {
        name: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": name}]
        for name in ("chosen", "rejected")
    }
    source = Source(source=written(tmp_path, [{"prompt": "Rate these.", **sides}]))
    assert column_line(describe(source, load_pairs(source, 0))).endswith("; not used: prompt")


def test_a_long_talk_is_shown_by_its_first_and_last_turns(tmp_path: Path) -> None:
    talk = [{"role": ("user", "assistant")[n % 2], "content": f"a\x1b{n}"} for n in range(9)]
    source = Source(source=written(tmp_path, [{"messages": talk}]))
    assert first_lines(describe(source, load_prompts(source, 0))) == [
        'user: "a\\u001b0"', 'between: "5 more turns"', 'user: "a\\u001b6"', 'assistant: "a\\u001b7"',
        'user: "a\\u001b8"',
    ]  # fmt: skip


def test_the_system_prompt_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    row = {"question": "Hi", "chosen": "a", "rejected": "b"}
    rows = [{**row, "system_prompt": "Be brief."}, {**row, "system_prompt": "Be kind.", "system": "Be wise."}]
    loaded = load_pairs(Source(source=written(tmp_path, rows)), 0)
    assert [pair.prompt[0].content for pair in loaded.rows] == ["Be brief.", "Be wise."]
