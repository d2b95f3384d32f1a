"""Figures as people read them, the same in all reports."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

HEADLINES = {
    "promote": "Promote the candidate",
    "keep_base": "Keep the base",
    "inconclusive": "Not enough evidence",
}
MISSING = "\u2013"


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without what no page can hold or a terminal obeys: control characters, lone surrogates."""
    return _CONTROL.sub("\ufffd", text)


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign; a true minus, so that columns line up."""
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", "\u2212")


def span(ends: Sequence[float] | None, digits: int = 2, scale: float = 1.0) -> str:
    """An interval: `+0.20 to +0.42`."""
    return MISSING if ends is None else " to ".join(signed(scale * end, digits) for end in ends)


def percent(share: float | None, digits: int = 1) -> str:
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def sentence(text: str) -> str:
    """The text with a capital letter, a full stop, true minuses, and figures that stay on one line."""
    text = re.sub(r"(?<![^\s(])-(?=\d)", "\u2212", text)
    text = text.replace("p = ", "p\u00a0=\u00a0").replace(" %", "\u00a0%")
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def trial_settings(config: Mapping[str, Any] | None) -> str:
    """The searched settings of a trial, in one line."""
    parts = (
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in (config or {}).items()
    )
    return ", ".join(parts) or MISSING
