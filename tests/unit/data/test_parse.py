"""Every format that fits, and every reason why a row does not."""

import json
from typing import Any

import pytest

from ray_jobs.data.bad_rows import BadRow
from ray_jobs.data.parse import parse_pair, parse_prompt
from ray_jobs.data.settings import Columns
from ray_jobs.records import Message

USUAL = Columns()
USER = Message("user", "Why is the sky blue?")


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def said(speaker: str, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


ASKED = turn("user", USER.content)


def pair_row(**changes: Any) -> dict[str, Any]:
    row = {
        "source": "test",
        "chosen": [ASKED, turn("assistant", "Scattering.")],
        "rejected": [ASKED, turn("assistant", "Paint.")],
        "prompt": USER.content,
    }
    return row | changes


@pytest.mark.parametrize(
    "row",
    [
        pair_row(),
        pair_row(prompt=None),
        pair_row(prompt="something else that the answers' own turns overrule"),
        pair_row(
            prompt=[ASKED], chosen=[turn("assistant", "Scattering.")], rejected=[turn("assistant", "Paint.")]
        ),
        pair_row(chosen=[turn("assistant", "Scattering.")], rejected=[turn("assistant", "Paint.")]),
        pair_row(chosen="Scattering.", rejected="Paint."),
        pair_row(chosen="Scattering.", rejected="Paint.", prompt=[ASKED]),
        pair_row(chosen="Scattering.", rejected=[turn("assistant", "Paint.")]),
        pair_row(
            prompt=None,
            chosen=f"\n\nHuman: {USER.content}\n\nAssistant: Scattering.",
            rejected=f"Human: {USER.content}\n\nAssistant: Paint.\n",
        ),
        pair_row(
            chosen=[
                turn("user", [{"type": "text", "text": USER.content}]),
                turn("assistant", [{"type": "text", "text": "Scatter"}, {"type": "text", "text": "ing."}]),
            ],
        ),
        pair_row(
            chosen=[said("human", USER.content), said("gpt", "Scattering.")],
            rejected=[said("human", USER.content), said("gpt", "Paint.")],
        ),
    ],
)
def test_trl_formats_give_the_same_pair(row: dict[str, Any]) -> None:
    pair = parse_pair(row, USUAL)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.source) == (
        (USER,),
        "Scattering.",
        "Paint.",
        "test",
    )
    assert pair.id == parse_pair(pair_row(), USUAL).id


def test_columns_may_have_other_names() -> None:
    columns = Columns(prompt="q", chosen="good", rejected="bad", source="part")
    pair = parse_pair({"q": "Hi", "good": "Hello!", "bad": "Bye", "part": "x"}, columns)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.source) == (
        (Message("user", "Hi"),),
        "Hello!",
        "Bye",
        "x",
    )


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {
            "id": 3,
            "source": "made by hand",
            "score": 5,
            "kind": "blue colour",
            "chosen_ids": [1, 2],
            "tags": [],
        },
    ],
)
def test_two_plain_answers_may_begin_with_their_prompt(beside: dict[str, Any]) -> None:
    """TRL's standard format with an implicit prompt."""
    pair = parse_pair({"chosen": "The sky is blue.", "rejected": "The sky is black.", **beside}, USUAL)
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message("user", "The sky is"),), "blue.", "black.")


@pytest.mark.parametrize(
    "beside",
    [{"query": "Colour?"}, {"messages": [ASKED]}, {"talk": [ASKED]}, {"input": "x"}, {"prompt": None}],
)
def test_beside_another_text_what_plain_answers_begin_with_is_no_prompt(beside: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match=r"empty_prompt \(column 'prompt'\)"):
        parse_pair({"chosen": "The sky is blue.", "rejected": "The sky is black.", **beside}, USUAL)


def test_a_transcript_is_read_turn_by_turn() -> None:
    """As the `chosen` and `rejected` of Anthropic/hh-rlhf."""
    before = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    pair = parse_pair({"chosen": f"{before} Because.", "rejected": f"{before} No."}, USUAL)
    assert pair.prompt == (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    assert (pair.chosen, pair.rejected) == ("Because.", "No.")


def test_answers_of_a_transcript_may_begin_alike() -> None:
    before = "\n\nHuman: Hi\n\nAssistant:"
    pair = parse_pair({"chosen": f"{before} I'm sorry, what?", "rejected": f"{before} I'm glad."}, USUAL)
    assert pair.prompt == (Message("user", "Hi"),)
    assert (pair.chosen, pair.rejected) == ("I'm sorry, what?", "I'm glad.")


TALK = "\n\nHuman: Hi\n\nAssistant: Hey.\n\nHuman: So?\n\nAssistant: Yes."


@pytest.mark.parametrize(
    ("reason", "rejected"),
    [
        ("prompts_differ", TALK.replace("Hey.", "Hello.").replace("Yes.", "No.")),
        ("prompts_differ", TALK.partition("\n\nHuman: So?")[0]),
        ("prompts_differ", "No."),
        ("no_answer", f"{TALK}\n\nHuman: Sure?"),
        ("empty_rejected", TALK.replace(" Yes.", "")),
        ("bad_turns", TALK.replace("Human: So?", "Assistant: So?")),
    ],
)
def test_transcripts_that_are_no_pair_are_refused(reason: str, rejected: str) -> None:
    chosen = TALK.replace("Human: So?", "Assistant: So?") if reason == "bad_turns" else TALK
    with pytest.raises(BadRow) as caught:
        parse_pair({"chosen": f"{chosen} Sir.", "rejected": rejected}, USUAL)
    assert caught.value.reason == reason


@pytest.mark.parametrize("turns", [[], [turn("system", "Be brief.")]])
def test_a_system_column_is_the_system_turn_where_there_is_none(turns: list[dict[str, Any]]) -> None:
    """As Intel/orca_dpo_pairs has it, with its question."""
    row = {"system": "Be kind.", "question": USER.content, "chosen": "a", "rejected": "b"}
    assert parse_pair(row, USUAL).prompt == (Message("system", "Be kind."), USER)
    sides = {name: [*turns, ASKED, turn("assistant", name)] for name in ("chosen", "rejected")}
    system = "Be brief." if turns else "Be kind."
    assert parse_pair({"system": "Be kind.", **sides}, USUAL).prompt[0] == Message("system", system)
    prompt = parse_prompt({"hint": "Be kind.", "prompt": "Hi", "system": 7}, Columns(system="hint"))
    assert prompt.messages == (Message("system", "Be kind."), Message("user", "Hi"))


def test_the_input_of_an_instruction_belongs_to_the_prompt() -> None:
    row = {"instruction": "Translate.", "input": "Hallo", "output": "Hello"}
    assert parse_prompt(row, Columns(answer="output")).messages == (Message("user", "Translate.\n\nHallo"),)
    assert parse_prompt({**row, "input": ""}, USUAL).messages == (Message("user", "Translate."),)
    assert parse_prompt({"prompt": "Hi", "input": "x"}, USUAL).messages == (Message("user", "Hi"),)
    assert parse_prompt({"prompt": "Hi", "with": "x"}, Columns(input="with")).messages[0].content == "Hi\n\nx"
    unnamed = {"": "7", "prompt": "Hi", "chosen": "a", "rejected": "b"}  # the index that pandas writes
    assert parse_pair(unnamed, USUAL).prompt == (Message("user", "Hi"),)


@pytest.mark.parametrize("speaker", ["chatgpt", "bing", "bard", "GPT", "Assistant"])
def test_speakers_of_sharegpt_are_known(speaker: str) -> None:
    talk = [said("Human", USER.content), said(speaker, "Scattering.")]
    assert parse_prompt({"conversations": talk}, USUAL).reference == "Scattering."


def test_earlier_turns_and_the_system_turn_are_the_prompt() -> None:
    before = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello"), ASKED]
    pair = parse_pair(
        pair_row(
            chosen=[*before, turn("assistant", "Scattering.")],
            rejected=[*before, turn("assistant", "Paint.")],
        ),
        USUAL,
    )
    assert [message.role for message in pair.prompt] == ["system", "user", "assistant", "user"]


def test_a_system_turn_without_a_question_takes_the_prompt_column() -> None:
    system = turn("system", "Be brief.")
    sides = {"chosen": [system, turn("assistant", "a")], "rejected": [system, turn("assistant", "b")]}
    assert parse_pair(pair_row(**sides), USUAL).prompt == (Message("system", "Be brief."), USER)


def test_the_system_turn_of_the_prompt_column_is_kept() -> None:
    """Also where the answers repeat the question without it."""
    system = Message("system", "Be brief.")
    for asked in ([turn("system", "Be brief."), ASKED], [said("system", "Be brief."), ASKED]):
        assert parse_pair(pair_row(prompt=asked), USUAL).prompt == (system, USER)
    other = {name: [turn("system", "Be kind."), *pair_row()[name]] for name in ("chosen", "rejected")}
    assert parse_pair(pair_row(prompt=[turn("system", "Be brief."), ASKED], **other), USUAL).prompt == (
        Message("system", "Be kind."),
        USER,
    )


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_what_only_the_prompts_messages_have_is_kept(turns: int) -> None:
    """Answers may repeat all of the prompt, its end, or go on from it."""
    talk = [turn("user", "Hi"), turn("assistant", "Hello"), ASKED]
    sides = {name: [*talk[-turns:], turn("assistant", name)] for name in ("chosen", "rejected")}
    if turns == 2:
        with pytest.raises(BadRow, match="bad_turns"):
            parse_pair(pair_row(prompt=talk[-turns:], **sides), USUAL)
    pair = parse_pair(pair_row(prompt=talk, **sides), USUAL)
    assert [message.content for message in pair.prompt] == ["Hi", "Hello", USER.content]
    assert (pair.chosen, pair.rejected) == ("chosen", "rejected")
    whole = {name: [*talk, turn("assistant", name)] for name in ("chosen", "rejected")}
    for prompt in (talk[:1], talk[-1:]):
        assert parse_pair(pair_row(prompt=prompt, **whole), USUAL) == pair


def test_answers_to_other_turns_than_the_prompts_messages_are_no_pair() -> None:
    with pytest.raises(BadRow, match="prompts_differ"):
        parse_pair(pair_row(prompt=[turn("user", "Something else")]), USUAL)


def test_an_empty_list_of_tools_offers_none() -> None:
    tools: Any
    for tools in ([], "[]", "", "none", None):
        assert parse_pair(pair_row(tools=tools), USUAL).prompt == (USER,)
    calls: dict[str, Any]
    for calls in (
        {"tool_calls": []},
        {"tool_calls": None},
        {"function_call": {"name": None, "arguments": None}},
    ):
        said = [ASKED, turn("assistant", "Scattering.") | calls]
        assert parse_pair(pair_row(chosen=said), USUAL).chosen == "Scattering."


def test_a_developers_turn_is_a_system_turn() -> None:
    prompt = parse_prompt({"messages": [turn("developer", "Be brief."), ASKED]}, USUAL)
    assert prompt.messages == (Message("system", "Be brief."), USER)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"chosen": turn("assistant", "Scattering."), "rejected": said("gpt", "Paint.")}, USUAL),
        ({"chosen": ["Scattering."], "rejected": ["Paint."]}, USUAL),
        ({"best": [{"answer": "Scattering."}, {"answer": "Paint."}]},
         Columns(chosen="best.0.answer", rejected="best.-1.answer")),
        ({"output": ["Scattering.", "Paint."]}, Columns(chosen="output.0", rejected="output.1")),
        ({"chosen": "Scattering.", "rejected": "Paint.", "prompt": {"full": USER.content}},
         Columns(prompt="prompt.full")),
        ({"chosen": [ASKED, turn("assistant", "Scattering.")], "rejected": "Paint.", "prompt": None}, USUAL),
    ],
)  # fmt: skip
def test_answers_may_stand_inside_of_other_values(row: dict[str, Any], columns: Columns) -> None:
    pair = parse_pair({"prompt": USER.content} | row, columns)
    assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), "Scattering.", "Paint.")


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"chosen": 7}, "it is a number; wanted: text, or messages"),
        ({"chosen": {"text": "x", "score": 3}}, "it is an object with text, score; wanted: text, or "
         "messages; name what is in it, as chosen.text"),
        ({"chosen": [1, 2]}, "it is a list of a number; wanted: text, or messages"),
        ({"chosen": [ASKED, turn("assistant", None)]}, "it is null; wanted: messages whose content is text"),
        ({"prompt": [ASKED, ASKED], "chosen": "x", "rejected": "y"},
         "the prompt's turns are user, user; wanted: an optional system turn, then user and assistant in "
         "turn, the user last"),
        ({"prompt": None, "query": "Why is the sky blue?", "chosen": "x", "rejected": "y"},
         "column 'query' may hold the prompt; name it with columns.prompt"),
    ],
)  # fmt: skip
def test_what_was_found_is_said_and_what_is_wanted(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_pair(pair_row(**changes), USUAL)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "calls",
    [
        [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
        '[{"function": {"name": "f"}}]',
    ],
)
@pytest.mark.parametrize("content", ["Let me look.", "", None])
def test_a_turn_that_calls_tools_is_never_cut_to_its_text(calls: Any, content: str | None) -> None:
    called = {**turn("assistant", content), "tool_calls": calls}
    for chosen in ([ASKED, called], [ASKED, called, turn("tool", "42"), turn("assistant", "x")]):
        with pytest.raises(BadRow, match="has_tools"):
            parse_pair(pair_row(chosen=chosen), USUAL)


BAD_PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("empty_chosen", {"chosen": None}),
    ("empty_chosen", {"chosen": []}),
    ("empty_chosen", {"chosen": " \n"}),
    ("empty_chosen", {"chosen": [ASKED, turn("assistant", "  ")]}),
    ("empty_rejected", {"rejected": None}),
    ("empty_rejected", {"chosen": "x", "rejected": ""}),
    ("empty_prompt", {"prompt": "", "chosen": "x", "rejected": "y"}),
    ("empty_prompt", {"prompt": None, "chosen": "x", "rejected": "y"}),
    ("empty_prompt", {"prompt": [], "chosen": "x", "rejected": "y"}),
    ("identical", {"rejected": [ASKED, turn("assistant", "Scattering. ")]}),
    ("identical", {"chosen": "x", "rejected": "x"}),
    ("not_text", {"chosen": 7}),
    ("not_text", {"chosen": [1, 2]}),
    ("not_text", {"chosen": [ASKED, turn("assistant", 7)]}),
    ("not_text", {"chosen": [ASKED, turn("assistant", None)]}),
    ("not_text", {"chosen": {"text": "x"}}),
    ("not_text", {"chosen": ["x", "y"]}),
    ("not_text", {"chosen": {"role": ["user"], "content": ["x"]}}),
    ("not_text", {"prompt": 7, "chosen": "x", "rejected": "y"}),
    ("bad_role", {"chosen": [turn("wizard", "Hi"), turn("assistant", "x")]}),
    ("bad_role", {"chosen": [{"content": "Hi"}, turn("assistant", "x")]}),
    ("bad_role", {"chosen": [turn(["user"], "Hi"), turn("assistant", "x")]}),  # type: ignore[arg-type]
    ("bad_turns", {"prompt": [ASKED, ASKED], "chosen": "x", "rejected": "y"}),
    ("bad_turns", {"prompt": [ASKED, turn("assistant", "z")], "chosen": "x", "rejected": "y"}),
    ("no_answer", {"chosen": [turn("assistant", "x"), ASKED]}),
    ("prompts_differ", {"rejected": [turn("user", "Why?"), turn("assistant", "Paint.")]}),
    ("lone_surrogate", {"chosen": "a\ud800", "rejected": "y"}),
    ("lone_surrogate", {"prompt": "\udc00?", "chosen": "x", "rejected": "y"}),
    ("nul", {"chosen": "a\0", "rejected": "y"}),
    ("nul", {"rejected": [ASKED, turn("assistant", "\0\0 x")]}),
    ("too_large", {"chosen": "x" * 1_000_001}),
    ("has_tools", {"tools": [{"type": "function"}]}),
    ("has_tools", {"tools": json.dumps([{"type": "function"}])}),
    ("messages_as_text", {"chosen": json.dumps([turn("assistant", "x")]), "rejected": "y"}),
    ("messages_as_text", {"chosen": "x", "rejected": str([turn("assistant", "y")])}),
    ("messages_as_text", {"prompt": str([ASKED]), "chosen": "x", "rejected": "y"}),
    ("prompts_differ", {"chosen": [ASKED, turn("assistant", "1"), ASKED, turn("assistant", "x")]}),
]


@pytest.mark.parametrize(("reason", "changes"), BAD_PAIRS)
def test_a_pair_is_refused_for_a_reason(reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        parse_pair(pair_row(**changes), USUAL)
    assert caught.value.reason == reason


HUMAN, GPT = said("human", USER.content), said("gpt", "Scattering.")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"conversations": [HUMAN, GPT]}, USUAL),
        ({"messages": [ASKED, turn("assistant", "Scattering.")]}, USUAL),
        ({"conversations": None, "messages": [ASKED, turn("assistant", "Scattering.")]}, USUAL),
        ({"talk": [HUMAN, GPT]}, Columns(conversations="talk")),
        ({"prompt": USER.content, "a": "Scattering."}, Columns(answer="a")),
        ({"instruction": USER.content, "output": "Scattering."}, Columns(answer="output")),
        ({"q": [ASKED], "a": "Scattering.", "messages": []}, Columns(prompt="q", answer="a")),
        ({"q": {"messages": [ASKED]}, "a": ["Scattering."]}, Columns(prompt="q.messages", answer="a")),
        ({"conversations": [HUMAN], "a": "Scattering."}, Columns(answer="a")),
    ],
)
def test_prompt_formats_give_the_same_prompt(row: dict[str, Any], columns: Columns) -> None:
    prompt = parse_prompt(row, columns)
    assert (prompt.messages, prompt.reference) == ((USER,), "Scattering.")


def test_the_last_answer_is_the_reference_and_all_before_is_the_prompt() -> None:
    talk = [said("system", "Be brief."), HUMAN, GPT, said("human", "Sure?"), said("gpt", "Yes.")]
    prompt = parse_prompt({"conversations": talk}, USUAL)
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.reference == "Yes."


@pytest.mark.parametrize("talk", [[HUMAN], [HUMAN, GPT, said("human", "Thanks!")]])
def test_a_chat_that_ends_with_the_user_is_a_prompt_as_it_is(talk: list[dict[str, Any]]) -> None:
    prompt = parse_prompt({"conversations": talk}, USUAL)
    assert [message.content for message in prompt.messages] == [turn["value"] for turn in talk]
    assert prompt.reference is None


def test_a_whole_number_is_an_answer() -> None:
    assert parse_prompt({"prompt": "6 x 7?", "a": 42}, Columns(answer="a")).reference == "42"


def test_a_plain_prompt_needs_no_answer() -> None:
    assert parse_prompt({"prompt": "Hi"}, USUAL).reference is None


BAD_PROMPTS: list[tuple[str, dict[str, Any], Columns]] = [
    ("no_answer", {"conversations": [HUMAN, said("gpt", " ")]}, USUAL),
    ("no_answer", {"prompt": "Hi", "a": ""}, Columns(answer="a")),
    ("not_text", {"prompt": "Hi", "a": 7.5}, Columns(answer="a")),
    ("not_text", {"prompt": "Hi", "a": True}, Columns(answer="a")),
    ("not_text", {"prompt": "Hi", "a": ["x", "y"]}, Columns(answer="a")),
    ("has_tools", {"conversations": [HUMAN, GPT], "functions": [{"name": "f"}]}, USUAL),
    ("not_text", {"conversations": "Hi"}, USUAL),
    ("messages_as_text", {"conversations": json.dumps([HUMAN, GPT])}, USUAL),
    ("messages_as_text", {"prompt": json.dumps([HUMAN])}, USUAL),
    ("has_tools", {"conversations": [HUMAN, GPT], "tools": [{}]}, USUAL),
    (
        "has_tools",
        {"conversations": [HUMAN, said("function_call", "{}"), said("observation", "3"), GPT]},
        USUAL,
    ),
    ("empty_prompt", {"conversations": [GPT]}, USUAL),
    ("empty_prompt", {"conversations": [said("system", "Be brief."), GPT]}, USUAL),
    ("empty_prompt", {"conversations": [said("human", ""), GPT]}, USUAL),
    ("empty_prompt", {"prompt": None}, USUAL),
    ("has_tools", {"conversations": [HUMAN, said("tool", "x"), GPT]}, USUAL),
    ("bad_role", {"conversations": [said("wizard", "x"), GPT]}, USUAL),
    ("bad_turns", {"conversations": [HUMAN, HUMAN, GPT]}, USUAL),
    ("bad_turns", {"conversations": [HUMAN, said("system", "late"), HUMAN, GPT]}, USUAL),
    ("nul", {"conversations": [said("system", "\0"), HUMAN, GPT]}, USUAL),
    ("lone_surrogate", {"conversations": [HUMAN, said("gpt", "\udfff")]}, USUAL),
]


@pytest.mark.parametrize(("reason", "row", "columns"), BAD_PROMPTS)
def test_a_prompt_is_refused_for_a_reason(reason: str, row: dict[str, Any], columns: Columns) -> None:
    with pytest.raises(BadRow) as caught:
        parse_prompt(row, columns)
    assert caught.value.reason == reason


def test_ids_follow_the_content_alone() -> None:
    one = parse_pair(pair_row(), USUAL)
    assert one.id == parse_pair(pair_row(source="other", extra=1), USUAL).id
    assert one.id != parse_pair(pair_row(rejected=[ASKED, turn("assistant", "paint.")]), USUAL).id
    assert len(one.id) == 16
