"""From token bytes to text that may be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Decodes UTF-8 piece by piece and watches for stop strings that cross piece borders.

    Bytes that are no UTF-8 become U+FFFD. Text that may still turn out to be the start of a stop string is
    held back until it is decided.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self._parts: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that has been released so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def push(self, piece: bytes) -> str:
        """Add a token's bytes; returns the text that can be shown now."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """The answer has ended: release what was held back, unless a stop string has ended it."""
        if self.stopped:
            return ""
        shown = self._release(self._decoder.decode(b"", True))
        rest, self._held = self._held, ""
        self._parts.append(rest)
        return shown + rest

    def _release(self, text: str) -> str:
        if not text or self.stopped:
            return ""
        if not self._stops:
            self._parts.append(text)
            return text
        pending = self._held + text
        starts = [at for at in map(pending.find, self._stops) if at >= 0]
        if starts:
            self.stopped, shown, self._held = True, pending[: min(starts)], ""
        else:
            keep = max(_overlap(pending, stop) for stop in self._stops)
            shown, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        if shown:
            self._parts.append(shown)
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper start of `stop` that ends `text`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
