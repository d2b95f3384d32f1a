"""From a raw row to a typed one, or to the reason why it cannot be used.

Formats: the columns of orpo-dpo-mix-40k and FineTome-100k, and TRL's preference formats (text or
messages, with the prompt in a column of its own or only inside the answers), see
https://huggingface.co/docs/trl/dataset_formats.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.data.settings import Columns
from ray_jobs.records import Message, Pair, Prompt, prompt_sha256

MAX_ROW_CHARACTERS = 1_000_000

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_CONVERSATIONS = ("conversations", "messages")
_PROMPTS = ("prompt", "instruction", "question")
_OTHER_PROMPTS = ("query", "input", "context", "user", "text", "problem")
"""Names that a column with the prompt may have, though it is not looked for there."""
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_WRITTEN_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
"""Messages that became text on their way, as tables without nested values have them."""
HINTS = {
    "bad_role": f"roles are {', '.join(_ROLES)}",
    "empty_prompt": "name the prompt's column with `columns: {prompt: …}`",
    "has_tools": "rows whose prompt offers tools are not supported",
    "messages_as_text": "a column of messages holds text; keep the list, as JSON lines or Parquet",
    "no_answer": "a chat without an answer is a plain prompt: `columns: {prompt: messages}`",
    "prompts_differ": "chosen and rejected share all turns but the last",
}
"""Reason -> what to do about it."""


class BadRow(Exception):
    """A row that cannot be used; `reason` is one word, `column` the column to look at."""

    def __init__(self, reason: str, column: str = "", found: str = "") -> None:
        super().__init__(
            reason + (f" {found!r}" if found else "") + (f" (column {column!r})" if column else "")
        )
        self.reason = reason
        self.column = column


def parse_pair(row: Mapping[str, Any], columns: Columns) -> Pair:
    """Raises BadRow."""
    check_size(row)
    check_no_tools(row)
    chosen_name, rejected_name = columns.chosen or "chosen", columns.rejected or "rejected"
    chosen, rejected = row.get(chosen_name), row.get(rejected_name)
    prompt = _asked(row, columns)
    if isinstance(chosen, str) and isinstance(rejected, str):
        for text, name in ((chosen, chosen_name), (rejected, rejected_name)):
            check_no_written_messages(text, name)
        if prompt is None and not brings_prompt(row, columns):
            raise BadRow("empty_prompt", columns.prompt or "prompt")
        turns, chosen, rejected = _text_pair(prompt, chosen, rejected, columns)
    else:
        turns, chosen = _answered(chosen, prompt, "chosen", chosen_name)
        other, rejected = _answered(rejected, prompt, "rejected", rejected_name)
        if turns != other:
            raise BadRow("prompts_differ", rejected_name)
    turns = with_system_column(turns, row, columns)
    check_prompt(turns)
    for text, reason in ((chosen, "empty_chosen"), (rejected, "empty_rejected")):
        check_text(text, reason)
    if chosen.strip() == rejected.strip():
        raise BadRow("identical", rejected_name)
    row_id = content_id(prompt_sha256(turns), chosen, rejected)
    return Pair(row_id, source_of(row, columns), turns, chosen, rejected)


def parse_prompt(row: Mapping[str, Any], columns: Columns) -> Prompt:
    """Raises BadRow. Conversations give the turns before their last answer, which is the reference."""
    check_size(row)
    check_no_tools(row)
    name = columns.conversations or next((name for name in _CONVERSATIONS if row.get(name)), "")
    reference: str | None
    if name and columns.prompt is None:
        turns, reference = _last_answer(messages_of(row.get(name), name), name)
    else:
        turns = _prompt_turns(_asked(row, columns), prompt_column(row, columns))
        reference = _plain_answer(row, columns)
    turns = with_system_column(turns, row, columns)
    check_prompt(turns)
    row_id = content_id(prompt_sha256(turns), reference or "")
    return Prompt(row_id, source_of(row, columns), turns, reference)


def prompt_column(row: Mapping[str, Any], columns: Columns) -> str:
    """The configured column, or the first usual one that the row has."""
    return columns.prompt or next((name for name in _PROMPTS if name in row), "prompt")


def _asked(row: Mapping[str, Any], columns: Columns) -> Any:
    """The value of the prompt's column, with the text that belongs to it."""
    name = prompt_column(row, columns)
    extra = columns.input or ("input" if name == "instruction" else None)
    value, more = row.get(name), row.get(extra) if extra is not None else None
    if isinstance(value, str):
        check_no_written_messages(value, name)
        if isinstance(more, str) and more.strip():
            return f"{value}\n\n{more}"
    return value


def with_system_column(
    turns: tuple[Message, ...], row: Mapping[str, Any], columns: Columns
) -> tuple[Message, ...]:
    """The turns, after a system turn of the row's own column where they have none."""
    text = row.get(columns.system or "system")
    if not isinstance(text, str) or not text.strip() or not turns or turns[0].role == "system":
        return turns
    return (Message("system", text), *turns)


def _text_pair(
    prompt: Any, chosen: str, rejected: str, columns: Columns
) -> tuple[tuple[Message, ...], str, str]:
    """Answers as plain text; without a prompt column it is a transcript's, or what both begin with."""
    if prompt is not None:
        return _prompt_turns(prompt, columns.prompt or "prompt"), chosen, rejected
    chosen_name, rejected_name = columns.chosen or "chosen", columns.rejected or "rejected"
    if not is_transcript(chosen) and not is_transcript(rejected):
        shared = _shared_words(chosen, rejected)
        return (Message("user", shared.strip()),), chosen[len(shared) :], rejected[len(shared) :]
    turns, answer = _transcript(chosen, chosen_name)
    other, rejected_answer = _transcript(rejected, rejected_name)
    if turns != other:
        raise BadRow("prompts_differ", rejected_name)
    return turns, answer, rejected_answer


def _shared_words(one: str, other: str) -> str:
    """What both texts begin with, up to the end of a word: letters in common are no part of a prompt."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return one[: max((at + 1 for at, char in enumerate(one[:length]) if char.isspace()), default=0)]


def brings_prompt(row: Mapping[str, Any], columns: Columns) -> bool:
    """Whether the answers can bring their prompt along: messages, also in the form of text, or transcripts;
    plain texts where no other column may be the prompt."""
    names = columns.chosen or "chosen", columns.rejected or "rejected"
    for answer in map(row.get, names):
        if not isinstance(answer, str) or is_transcript(answer) or _WRITTEN_MESSAGES.match(answer):
            return True
    has_column = prompt_column(row, columns) in row
    return not has_column and not any(_may_be_prompt(name, row[name]) for name in row.keys() - {*names})


def _may_be_prompt(name: str, value: Any) -> bool:
    """Whether a column holds messages, or text under a name that prompts have."""
    if isinstance(value, str):
        return name in _OTHER_PROMPTS
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping)


def is_transcript(text: str) -> bool:
    """Whether a text is a whole talk, written as `Human: …` and `Assistant: …` turn by turn."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _transcript(text: str, column: str) -> tuple[tuple[Message, ...], str]:
    """The turns before the last answer of a talk that is written as one text, and that answer."""
    if not is_transcript(text):
        raise BadRow("prompts_differ", column)
    _, *parts = _TRANSCRIPT.split(f"\n\n{text.lstrip()}")
    roles = {"Human": "user", "Assistant": "assistant"}
    spoken = zip(parts[::2], parts[1::2], strict=True)
    *turns, last = (Message(roles[who], said.strip()) for who, said in spoken)
    if last.role != "assistant":
        raise BadRow("no_answer", column)
    return tuple(turns), last.content


def _answered(value: Any, prompt: Any, side: str, column: str) -> tuple[tuple[Message, ...], str]:
    """The turns before an answer, and the answer; the turns come from the prompt column if not inside."""
    if value is None:
        raise BadRow(f"empty_{side}", column)
    if isinstance(value, str):
        check_no_written_messages(value, column)
        return _prompt_turns(prompt, "prompt"), value
    turns = messages_of(value, column)
    if not turns:
        raise BadRow(f"empty_{side}", column)
    if turns[-1].role != "assistant":
        raise BadRow("no_answer", column)
    before = turns[:-1]
    if all(turn.role == "system" for turn in before) and prompt is not None:
        before = (*before, *_prompt_turns(prompt, "prompt"))
    elif before and before[0].role != "system":
        before = (*_system_turn(prompt), *before)
    return before, turns[-1].content


def _system_turn(prompt: Any) -> tuple[Message, ...]:
    """The system turn of a prompt whose other turns stand inside the answers too."""
    first = prompt[0] if isinstance(prompt, Sequence) and prompt else None
    is_system = isinstance(first, Mapping) and "system" in (first.get("role"), first.get("from"))
    return (_message(first, "prompt"),) if is_system else ()


def _last_answer(turns: tuple[Message, ...], column: str) -> tuple[tuple[Message, ...], str]:
    last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None or not turns[last].content.strip():
        raise BadRow("no_answer", column)
    check_text(turns[last].content, "no_answer")
    return turns[:last], turns[last].content


def _plain_answer(row: Mapping[str, Any], columns: Columns) -> str | None:
    answer = row.get(columns.answer) if columns.answer else None
    if answer is not None and not isinstance(answer, str):
        raise BadRow("not_text", columns.answer or "")
    if answer is not None:
        check_text(answer, "no_answer")
    return answer


def _prompt_turns(value: Any, column: str) -> tuple[Message, ...]:
    if value is None or isinstance(value, str):
        return (Message("user", value or ""),)
    return messages_of(value, column)


def messages_of(value: Any, column: str) -> tuple[Message, ...]:
    """Turns as {role, content} or {from, value}, with the roles of this project."""
    if isinstance(value, str):
        check_no_written_messages(value, column)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadRow("not_text", column)
    return tuple(_message(item, column) for item in value)


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow("not_text", column)
    role = item.get("role") or item.get("from")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise BadRow("bad_role", column, role if isinstance(role, str) else "")
    return Message(_ROLES[role.lower()], _text_of(content, column))


def _text_of(content: Any, column: str) -> str:
    """Text, or the text parts of a list as chat APIs write it; images and sounds are no text."""
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        known = [text for text in texts if isinstance(text, str)]
        content = "".join(known) if known and len(known) == len(texts) else None
    if not isinstance(content, str):
        raise BadRow("not_text", column)
    return content


def check_prompt(turns: Sequence[Message]) -> None:
    """System turn first if any, then user and assistant in turn, the user last, as chat templates want."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken:
        raise BadRow("empty_prompt")
    wanted = ["user" if at % 2 == 0 else "assistant" for at in range(len(spoken))]
    if [turn.role for turn in spoken] != wanted or spoken[-1].role != "user":
        raise BadRow("bad_turns")
    if not spoken[-1].content.strip():
        raise BadRow("empty_prompt")
    for turn in turns:
        check_text(turn.content, "")


def check_text(text: Any, reason_if_empty: str) -> None:
    if not isinstance(text, str):
        raise BadRow("not_text")
    if reason_if_empty and not text.strip():
        raise BadRow(reason_if_empty)
    if "\0" in text:
        raise BadRow("nul")
    check_encodes(text)


def check_encodes(text: str, column: str = "") -> None:
    """Half of a UTF-16 pair can be written to no file."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("lone_surrogate", column) from error


def check_no_written_messages(text: str, column: str) -> None:
    """A list of messages in the form of text is no answer that a model should learn to write."""
    if _WRITTEN_MESSAGES.match(text):
        raise BadRow("messages_as_text", column)


def check_no_tools(row: Mapping[str, Any]) -> None:
    """A prompt that offers tools is another prompt without them."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            return
    if isinstance(tools, list | dict) and tools:
        raise BadRow("has_tools", "tools")


def check_size(row: Mapping[str, Any]) -> None:
    if characters(row) > MAX_ROW_CHARACTERS:
        raise BadRow("too_large")


def characters(value: Any) -> int:
    """Characters of all the text inside a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(characters(item) for item in value.values())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return sum(characters(item) for item in value)
    return 0


def source_of(row: Mapping[str, Any], columns: Columns) -> str:
    """The value of the source column, or nothing where that is no text."""
    value = row.get(columns.source or "source")
    return value if isinstance(value, str) else ""


def content_id(*parts: str) -> str:
    """The first 16 hex digits of a hash of the parts: the same content has the same id everywhere."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]
