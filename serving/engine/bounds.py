"""Text that cannot fit is refused before it is tokenised: merging takes time quadratic in a word's length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.engine.errors import RequestError

_CHUNK_BYTES = 8192
_SLACK = 1.25
"""Cut in two, a text has a few tokens more than in one; far fewer than a quarter."""


def check_fits(data: bytes, max_tokens: int, tokenize: Callable[[bytes], Sequence[int]]) -> None:
    """Raises RequestError `context_length_exceeded` for UTF-8 text that is far over `max_tokens`.

    Counts piece by piece, and no further than it has to. What passes may still be somewhat too long.
    """
    limit, count, at = _SLACK * max_tokens + 16, 0, 0
    if len(data) <= max(_CHUNK_BYTES, limit):
        return
    while at < len(data):
        end = _character_end(data, at + _CHUNK_BYTES)
        count += len(tokenize(data[at:end]))
        at = end
        if count > limit:
            message = f"the prompt has over {max_tokens} tokens, and the context of {max_tokens} must hold"
            raise RequestError("context_length_exceeded", f"{message} the answer too")


def _character_end(data: bytes, at: int) -> int:
    """`at`, or up to three bytes further, where a UTF-8 character ends."""
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at
