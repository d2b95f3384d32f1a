"""Which calls belong together: the turns of a chat, and the calls of a user."""

from __future__ import annotations

import hashlib

from serving.calls import Call


def opening(call: Call) -> str:
    """The same for all turns of a chat: a hash of what it began with, up to the user's first turn."""
    start: list[object] = [str(call.prompts[:1])[:256]]
    if call.messages is not None:
        roles = [turn["role"] for turn in call.messages]
        start = list(call.messages[: roles.index("user") + 1 if "user" in roles else 1])
    return hashlib.sha256(repr(start).encode("utf-8", "replace")).hexdigest()


def position(call: Call) -> float:
    """Where a user stands, from 0 up to 1: always the same place; without a user, where the chat stands."""
    digest = hashlib.sha256((call.user or opening(call)).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
