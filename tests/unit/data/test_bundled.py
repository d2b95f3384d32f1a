"""The bundled data sets: schema, determinism, disjointness, and tasks whose answers a program can tell."""

import json

import pytest

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.families import FAMILIES, PREFIX
from ray_jobs.data.bundled.rows import NUM_ROWS, bundled_rows
from ray_jobs.data.checks import check_answer, family
from ray_jobs.data.load import load_pairs, load_prompts
from ray_jobs.data.overlap import leak_key
from ray_jobs.data.settings import Source
from ray_jobs.records import Message, Prompt

PAIRS, PROMPTS = Source(source="bundled:pairs"), Source(source="bundled:prompts")
PINNED = {
    "bundled:pairs": "00d59b927bb70b38effaf78ac9a4ecc11c96d4639d37f5b1a4fee6e038afdd00",
    "bundled:prompts": "6231219dfeee3491687cbb8569ed7ae67395f54ba41203b30d54a9c89acba517",
}


def test_pairs_have_exactly_the_schema_of_orpo_dpo_mix() -> None:
    for row in bundled_rows("bundled:pairs"):
        assert list(row) == ["source", "chosen", "rejected", "prompt", "question"]
        for side in ("chosen", "rejected"):
            assert all(set(turn) == {"role", "content"} for turn in row[side])
            assert row[side][-1]["role"] == "assistant"
        assert row["chosen"][:-1] == row["rejected"][:-1]
        assert row["prompt"] == row["question"] == row["chosen"][-2]["content"]


def test_prompts_have_exactly_the_schema_of_finetome() -> None:
    for row in bundled_rows("bundled:prompts"):
        assert list(row) == ["conversations", "source", "score"]
        assert all(set(turn) == {"from", "value"} for turn in row["conversations"])
        assert {turn["from"] for turn in row["conversations"]} <= {"system", "human", "gpt"}
        assert row["conversations"][-1]["from"] == "gpt"
        assert isinstance(row["score"], float)


@pytest.mark.parametrize("source", [PAIRS, PROMPTS])
def test_the_same_rows_come_out_everywhere(source: Source) -> None:
    loaded = load_pairs(source, 0) if source is PAIRS else load_prompts(source, 0)
    assert loaded.fingerprint == PINNED[source.source]
    assert (len(loaded.rows), loaded.quarantined) == (NUM_ROWS[source.source], ())


def test_draws_rest_on_what_python_promises() -> None:
    draws = Draws("seed")
    assert [draws.integer(0, 99) for _ in range(5)] == [89, 80, 19, 5, 64]
    assert draws.sample("abcdef", 6) == ["d", "b", "e", "f", "a", "c"]


def test_draws_reach_both_ends_and_nothing_else() -> None:
    draws = Draws("ends")
    assert {draws.integer(-1, 2) for _ in range(500)} == {-1, 0, 1, 2}
    assert sorted(draws.sample(range(20), 20)) == list(range(20))


def test_there_is_enough_and_every_family_has_its_share() -> None:
    pairs = [row["source"] for row in bundled_rows("bundled:pairs")]
    prompts = [row["source"] for row in bundled_rows("bundled:prompts")]
    assert len(pairs) == NUM_ROWS["bundled:pairs"] >= 1200
    assert len(prompts) == NUM_ROWS["bundled:prompts"] >= 400
    for rows in (pairs, prompts):
        assert {rows.count(PREFIX + name) for name in FAMILIES} == {len(rows) // len(FAMILIES)}


def test_no_prompt_stands_twice_or_on_both_sides() -> None:
    pairs = [leak_key(pair.prompt) for pair in load_pairs(PAIRS, 0).rows]
    prompts = [leak_key(prompt.messages) for prompt in load_prompts(PROMPTS, 0).rows]
    assert len({*pairs, *prompts}) == len(pairs) + len(prompts)


def test_some_conversations_have_several_turns_and_a_system_turn() -> None:
    roles = [tuple(message.role for message in prompt.messages) for prompt in load_prompts(PROMPTS, 0).rows]
    assert ("system", "user", "assistant", "user") in roles
    assert ("user", "assistant", "user", "assistant", "user") in roles


@pytest.mark.parametrize("name", FAMILIES)
def test_a_check_takes_its_own_reference_and_not_the_rejected_answer(name: str) -> None:
    for number in range(300):
        task = FAMILIES[name].generate(Draws(f"test:{name}:{number}"))
        prompt = Prompt("id", PREFIX + name, task.messages, task.right)
        assert check_answer(prompt.source, prompt, task.right) is True
        assert check_answer(prompt.source, prompt, f"\n{task.right} \n") is True
        assert check_answer(prompt.source, prompt, task.rejected) is False
        assert check_answer(prompt.source, prompt, "") is False
        assert check_answer(prompt.source, prompt, f"Sure! {task.right}") is False
        assert task.messages[-1].role == "user"


def test_wording_varies_and_answers_are_not_all_the_same() -> None:
    for name in FAMILIES:
        tasks = [FAMILIES[name].generate(Draws(f"{name}:{number}")) for number in range(200)]
        assert len({task.rejected for task in tasks}) > 5
        assert len({leak_key(task.messages) for task in tasks}) > 150, name


def test_json_is_compared_as_values_and_without_words_around() -> None:
    prompt = Prompt("id", PREFIX + "json", (Message("user", "?"),), json.dumps({"a": 1, "b": "x"}))
    for answer, right in (
        ('{"b":"x","a":1}', True),
        ('{\n  "a": 1,\n  "b": "x"\n}', True),
        ('```json\n{"a": 1, "b": "x"}\n```', False),
        ('{"a": "1", "b": "x"}', False),
        ('{"a": true, "b": "x"}', False),
        ('{"a": 1, "b": "x", "c": 2}', False),
        ("[" * 100_000, False),
        ("NaN", False),
    ):
        assert check_answer(prompt.source, prompt, answer) is right, answer


def test_sources_without_a_program_check_are_left_to_the_judge() -> None:
    prompt = Prompt("id", "alpaca", (Message("user", "?"),), "x")
    assert check_answer("alpaca", prompt, "x") is None
    assert check_answer("json", prompt, "x") is None
    assert family("alpaca") is None
    assert family("json") is None
    assert family(PREFIX + "json") == "json"
    unanswered = Prompt("id", PREFIX + "json", (Message("user", "?"),), None)
    assert check_answer(unanswered.source, unanswered, "x") is None
