"""Turns of a talk: as messages, or written into one text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.data.bad_rows import BadRow, not_text
from ray_jobs.data.texts import check_no_written_messages, check_text, holds_tools
from ray_jobs.records import Message

MESSAGES = "messages, each with role and content (or from and value)"
TEXT = "text, or messages"

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
    "developer": "system",
}
_TOOL_ROLES = ("tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython")
_CALLS = ("tool_calls", "function_call")
_SPOKEN = {"Human": "user", "Assistant": "assistant", "User": "user", "System": "system"}
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_TIGHT_TRANSCRIPT = re.compile(r"\n(Human|Assistant):")
_MARKED = re.compile(r"(?:^|\n)<extra_id_[01]>(User|Assistant|System)[ ]*(?:\n|$)")
"""How NVIDIA's HelpSteer data sets write the turns after the first."""


def messages_of(value: Any, column: str) -> tuple[Message, ...]:
    """Turns as {role, content} or {from, value}, or a single one, with the roles of this project.

    Raises BadRow for what is no list of messages, holds unknown roles or calls tools.
    """
    if isinstance(value, str):
        check_no_written_messages(value, column)
    if is_message(value):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise not_text(value, column, MESSAGES)
    return tuple(_message(item, column) for item in value)


def is_message(value: Any) -> bool:
    """Whether a value is a single message."""
    return isinstance(value, Mapping) and any(
        isinstance(value.get(who), str) and value.get(what) is not None
        for who, what in (("role", "content"), ("from", "value"))
    )


def is_messages(value: Any) -> bool:
    """Whether a value is a message or a list of such, as far as its first item shows."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes) and bool(value)
    return is_message(value) or (is_list and isinstance(value[0], Mapping))


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, Mapping):
        raise not_text(item, column, MESSAGES)
    role = item.get("role") or item.get("from")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if any(item.get(name) and holds_tools(item[name]) for name in _CALLS):
        raise BadRow("has_tools", column)
    if isinstance(role, str) and role.lower() in _TOOL_ROLES:
        raise BadRow("has_tools", column, role)
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise BadRow("bad_role", column, role if isinstance(role, str) else "")
    return Message(_ROLES[role.lower()], _text_of(content, column))


def _text_of(content: Any, column: str) -> str:
    """Text, or the text parts of a list as chat APIs write it; images and sounds are no text."""
    text = content
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        known = [text for text in texts if isinstance(text, str)]
        text = "".join(known) if known and len(known) == len(texts) else None
    if not isinstance(text, str):
        raise not_text(content, column, "messages whose content is text")
    return text


def prompt_turns(value: Any, column: str) -> tuple[Message, ...]:
    """The turns of a prompt: messages, a talk written as one text, or a plain text of the user's.

    Raises BadRow for a value of another kind, and for messages in the form of text.
    """
    if value is None:
        return (Message("user", ""),)
    if not isinstance(value, str):
        if not is_messages(value) and value != []:
            raise not_text(value, column, TEXT)
        return messages_of(value, column)
    check_no_written_messages(value, column)
    return _written_turns(value) or (Message("user", value),)


def is_written_talk(text: str) -> bool:
    """Whether a prompt is a talk written as one text, up to where its answer begins."""
    return bool(_written_turns(text))


def _written_turns(text: str) -> tuple[Message, ...]:
    """The turns of a prompt that is a talk written as one text; nothing for any other text."""
    if not text.lstrip().startswith("Human:") and "<extra_id_" not in text:
        return ()
    plain = text.replace("\r\n", "\n")
    if _MARKED.search(plain):
        return _without_open_end(_marked_turns(plain))
    begins = plain.startswith("\n\nHuman:")
    if begins or (plain.startswith("Human:") and plain.rstrip().endswith("\nAssistant:")):
        return _without_open_end(_turns_of(plain))
    return ()


def _marked_turns(text: str) -> tuple[Message, ...]:
    first, *parts = _MARKED.split(text)
    said = [Message("user", first.strip())] if first.strip() else []
    return (*said, *_spoken(parts))


def _without_open_end(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns without a last one of the assistant in which nothing is said yet."""
    is_open = bool(turns) and turns[-1].role == "assistant" and not turns[-1].content
    return turns[:-1] if is_open else turns


def is_transcript(text: str) -> bool:
    """Whether a text is a whole talk, written as `Human: …` and `Assistant: …` turn by turn."""
    return text.lstrip().startswith("Human:") and "\nAssistant:" in text


def transcript(text: str, column: str) -> tuple[tuple[Message, ...], str]:
    """The turns before the last answer of a talk that is written as one text, and that answer.

    Raises BadRow for another text, and for a talk that ends with the user.
    """
    if not is_transcript(text):
        raise BadRow("prompts_differ", column)
    *turns, last = _turns_of(text.replace("\r\n", "\n"))
    if last.role != "assistant":
        raise BadRow("no_answer", column)
    return tuple(turns), last.content


def _turns_of(text: str) -> tuple[Message, ...]:
    separator = _TRANSCRIPT if "\n\nAssistant:" in text else _TIGHT_TRANSCRIPT
    _, *parts = separator.split(f"\n\n{text.lstrip()}")
    return _spoken(parts)


def _spoken(parts: Sequence[str]) -> tuple[Message, ...]:
    """Turns of speakers and what they said, one after the other."""
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPOKEN[who], said.strip()) for who, said in spoken)


def split_system(turns: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system turn, if there is one, and the turns after it."""
    has_system = bool(turns) and turns[0].role == "system"
    return tuple(turns[:has_system]), tuple(turns[has_system:])


def check_prompt(turns: Sequence[Message]) -> None:
    """System turn first if any, then user and assistant in turn, the user last, as chat templates want.

    Raises BadRow for other turns, and where the last one is empty.
    """
    _, spoken = split_system(turns)
    if not spoken:
        raise BadRow("empty_prompt")
    wanted = ["user" if at % 2 == 0 else "assistant" for at in range(len(spoken))]
    if [turn.role for turn in spoken] != wanted or spoken[-1].role != "user":
        raise BadRow("bad_turns", hint=_found_turns(turns))
    if not spoken[-1].content.strip():
        raise BadRow("empty_prompt")
    for turn in turns:
        check_text(turn.content, "")


MAX_TURNS_SHOWN = 8


def _found_turns(turns: Sequence[Message]) -> str:
    roles = [turn.role for turn in turns]
    shown = ", ".join(roles[-MAX_TURNS_SHOWN:])
    more = "…, " if len(roles) > MAX_TURNS_SHOWN else ""
    return (
        f"the prompt's turns are {more}{shown}; wanted: an optional system turn, then user and assistant in "
        "turn, the user last"
    )
