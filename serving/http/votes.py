"""Votes from the chat page, kept as preference pairs in the schema that training reads."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from serving.http.errors import ApiError
from serving.protocol import ChatMessage, Part

MAX_FILE_BYTES = 256 << 20


class Vote(Part):
    """POST /votes: the turns before two answers, and which of them was better."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024, fail_fast=True)]
    chosen: str
    rejected: str
    chosen_model: Annotated[str, Field(max_length=256)]
    rejected_model: Annotated[str, Field(max_length=256)]


def as_pair(vote: Vote) -> dict[str, Any]:
    """A row of the training data. Raises ApiError 400 for a vote that says nothing."""
    turns = [message.as_turn() for message in vote.messages]
    if any(
        message.role == "tool" or message.tool_calls or message.content in (None, [])
        for message in vote.messages
    ):
        raise ApiError(400, "only messages of text can be voted on", param="messages", code="invalid_value")
    if turns[-1]["role"] != "user":
        raise ApiError(400, "the last message must be the user's", param="messages", code="invalid_value")
    if vote.chosen == vote.rejected:
        raise ApiError(400, "both answers are the same", param="chosen", code="invalid_value")
    question = turns[-1]["content"]
    return {
        "source": "votes",
        "chosen": [*turns, {"role": "assistant", "content": vote.chosen}],
        "rejected": [*turns, {"role": "assistant", "content": vote.rejected}],
        "prompt": question,
        "question": question,
        "chosen_model": vote.chosen_model,
        "rejected_model": vote.rejected_model,
    }


class VoteFile:
    """A JSONL file that only grows. Thread-safe; processes can share it, since one call writes a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def append(self, pair: dict[str, Any]) -> None:
        """Raises ApiError 507 once the file is full."""
        line = json.dumps(pair, ensure_ascii=False).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self._path.open("ab", buffering=0) as file:
            if file.tell() + len(line) > MAX_FILE_BYTES:
                raise ApiError(507, "no more votes are stored: the file is full", code="votes_full")
            file.write(line)
