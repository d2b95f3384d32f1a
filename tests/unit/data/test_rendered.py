"""Prompts that are written as one text, and answers that begin with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data import rendered
from ray_jobs.data.load import load_pairs, load_prompts
from ray_jobs.data.parse import parse_pair, parse_prompt, read_pair
from ray_jobs.data.rendered import Rendered, template_marker
from ray_jobs.data.settings import Columns, Source
from ray_jobs.errors import DataError
from ray_jobs.records import Message

TALK = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
HUMAN = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
QUESTION = "What is a moon?"


def row(prompt: Any, chosen: Any = " Because.", rejected: Any = " No.") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def written(folder: Path, rows: list[Any]) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(source=str(path))


@pytest.mark.parametrize(
    "prompt",
    [
        HUMAN,
        f"{HUMAN} ",
        HUMAN.lstrip(),
        HUMAN.replace("\n", "\r\n"),
        HUMAN.removesuffix("\n\nAssistant:"),
        HUMAN.lstrip().replace("\n\n", "\n"),
        "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?",
        "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\n",
        "<extra_id_1>User\r\nHi\r\n<extra_id_1>Assistant\r\nHello\r\n<extra_id_1>User\r\nWhy?",
    ],
)
def test_a_talk_in_the_prompts_column_is_read_turn_by_turn(prompt: str) -> None:
    """As Dahoas/rm-static, Nectar and HelpSteer2 have them."""
    pair = parse_pair(row(prompt), Columns())
    assert (pair.prompt, pair.chosen, pair.rejected) == (TALK, "Because.", "No.")
    assert parse_prompt({"prompt": prompt}, Columns()).messages == TALK
    answered = [{"role": "assistant", "content": "Because."}]
    assert parse_pair(row(prompt, answered), Columns()).prompt == TALK


@pytest.mark.parametrize(
    "prompt",
    ["Human: or not?", "Who says this?\n\nHuman: Hi\n\nAssistant:", "Human: a\n\nAssistant: b\n\nWho is it?"],
)
def test_a_prompt_about_a_talk_is_a_prompt(prompt: str) -> None:
    assert parse_pair(row(prompt), Columns()).prompt == (Message("user", prompt),)


@pytest.mark.parametrize("answers", [("\r\n\r\n", "\r\n\r\n"), ("", "\n")])
def test_transcripts_may_have_other_line_ends(answers: tuple[str, str]) -> None:
    start, between = answers
    texts = [f"{start}Human: Hi{between}Assistant: {said}" for said in ("a", "b")]
    pair = parse_pair({"chosen": texts[0], "rejected": texts[1]}, Columns())
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message("user", "Hi"),), "a", "b")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (QUESTION, f"{QUESTION} A stone.", f"{QUESTION}\nA cheese."),
        (f" {QUESTION}\n", f"{QUESTION}\n\nA stone.", f"\n{QUESTION} A cheese."),
        ([{"role": "user", "content": QUESTION}], f"{QUESTION} A stone.", f"{QUESTION} A cheese."),
        (QUESTION, f"user\n{QUESTION}\nassistant\nA stone.", f"user\n{QUESTION}\nassistant\nA cheese."),
        (QUESTION, f"Human: {QUESTION}\n\nAssistant: A stone.", f"Human: {QUESTION}\n\nAssistant: A cheese."),
        (
            f"\n\nHuman: {QUESTION}\n\nAssistant:",
            f"\n\nHuman: {QUESTION}\n\nAssistant: A stone.",
            f"\n\nHuman: {QUESTION}\n\nAssistant: A cheese.",
        ),
    ],
)
def test_a_prompt_that_both_answers_begin_with_is_cut_off(prompt: Any, chosen: str, rejected: str) -> None:
    read = read_pair(row(prompt, chosen, rejected), Columns())
    assert (read.row.chosen, read.row.rejected, read.is_cut) == ("A stone.", "A cheese.", True)
    assert read.row.prompt[-1].content.strip() == QUESTION


def test_a_transcript_beside_the_last_turn_brings_the_turns_before_it() -> None:
    read = read_pair(row("Why?", f"{HUMAN} Because.", f"{HUMAN} No."), Columns())
    assert (read.row.prompt, read.row.chosen, read.row.rejected) == (TALK, "Because.", "No.")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hello", "Hello there", "Hello you"),  # a greeting
        (QUESTION, f"{QUESTION} A stone.", "A cheese."),
        (QUESTION, f"{QUESTION} A stone.", QUESTION),
        ("The sky was", "The sky wasn't blue.", "The sky was black."),
        ("Write a talk.", "Human: Hi\n\nAssistant: Hey", "Human: Hi\n\nAssistant: Ho"),
    ],
)
def test_answers_that_only_look_alike_stay_whole(prompt: str, chosen: str, rejected: str) -> None:
    read = read_pair(row(prompt, chosen, rejected), Columns())
    assert (read.row.chosen, read.row.rejected, read.is_cut) == (chosen, rejected, False)


def test_prompts_that_were_cut_off_are_counted(tmp_path: Path) -> None:
    rows = [row(f"{QUESTION} {n}", f"{QUESTION} {n} A stone.", f"{QUESTION} {n} A cheese.") for n in range(3)]
    assert load_pairs(written(tmp_path, [*rows, row("Why?")]), 0).num_cut == 3


MARKED = [
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "'<|im_start|>' in the prompt"),
    ("<s>[INST] Hi [/INST]", "'[INST]' in the prompt"),
    ("<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "'<|start_header_id|>' in the prompt"),
    ("<start_of_turn>user\nHi<end_of_turn>", "'<start_of_turn>' in the prompt"),
    ("### Instruction:\nHi\n\n### Response:\n", "'### Instruction:' in the prompt"),
    ("USER: Hi ASSISTANT: ", "'ASSISTANT:' in the prompt"),
]


@pytest.mark.parametrize(("prompt", "says"), MARKED)
def test_prompts_from_a_chat_template_are_refused(tmp_path: Path, prompt: str, says: str) -> None:
    source = written(tmp_path, [row(prompt, f"a{n}") for n in range(9)])
    with pytest.raises(DataError) as caught:
        load_pairs(source, 0)
    assert f"9 of 9 rows hold the markers of a chat template (first: {source.source} line 1: {says})" in str(
        caught.value
    )
    with pytest.raises(DataError, match="markers of a chat template"):
        load_prompts(written(tmp_path, [{"prompt": f"{n}{prompt}"} for n in range(3)]), 0)


def test_answers_that_end_with_a_marker_are_refused(tmp_path: Path) -> None:
    rows = [row(f"Why {n}?", f"a{n}", "b</s>\n" if n % 5 == 0 else "b") for n in range(20)]
    with pytest.raises(DataError, match=r"4 of 20 rows .* line 1: '</s>' in the rejected answer"):
        load_pairs(written(tmp_path, rows), 0)


def test_a_prompt_that_is_a_written_list_is_refused(tmp_path: Path) -> None:
    rows = [row(json.dumps([f"q{n}", "and then?"]), "a", "b") for n in range(5)]
    with pytest.raises(
        DataError, match=r"in 5 of 5 rows the prompt is a list in the form of text \(first: .*q0"
    ):
        load_pairs(written(tmp_path, rows), 0)
    answers = [row(f"List two: {n}", '["a", "b"]', '["c", "d"]') for n in range(5)]
    assert len(load_pairs(written(tmp_path, answers), 0).rows) == 5


def test_a_question_about_a_template_is_a_question(tmp_path: Path) -> None:
    asked = [row("What does <|im_start|> mean?"), row("And [INST]?"), row('["a", "b"]'), row('["a", 1]')]
    rows = [*asked, *(row(f"Why {n}?") for n in range(16))]
    assert len(load_pairs(written(tmp_path, rows), 0).rows) == 20


@pytest.mark.parametrize(
    ("count", "rows", "is_too_much"),
    [
        (2, 5, False),
        (3, 29, True),
        (3, 30, False),
        (1, 1, True),
        (2, 2, True),
        (0, 0, False),
        (100, 999, True),
    ],
)
def test_how_many_are_too_many(count: int, rows: int, is_too_much: bool) -> None:
    assert Rendered(count=count).is_too_much(rows) is is_too_much


@pytest.mark.parametrize("marker", rendered._MARKERS)
def test_no_marker_is_passed_over(marker: str) -> None:
    assert (
        template_marker(parse_pair(row("Why?", f"a{marker}b"), Columns()))
        == f"{marker!r} in the chosen answer"
    )
