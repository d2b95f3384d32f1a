"""Whole numbers between bounds, as llama.cpp's grammars write them."""

from __future__ import annotations

_MAX_DIGITS = 16
"""Of numbers without a bound, as everywhere in the converter's grammars."""


def whole_numbers(low: int | None, high: int | None) -> str:
    """A rule for the decimal numbers from `low` to `high`, both included; None: no bound.

    Raises ValueError if there are none.
    """
    if low is not None and high is not None and low > high:
        raise ValueError(f"there is no whole number from {low} to {high}")
    ways = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        ways.append(f'"-" ({_from(least) if low is None else _naturals(least, -low)})')
    if high is None or high >= 0:
        least = max(low or 0, 0)
        ways.append(_from(least) if high is None else _naturals(least, high))
    return " | ".join(ways)


def _from(low: int) -> str:
    digits = max(len(str(low)), _MAX_DIGITS)
    return _naturals(low, 10**digits - 1)


def _naturals(low: int, high: int) -> str:
    """One alternative for each number of digits, and all that are in full at once."""
    ways = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = 10 ** (length - 1) if length > 1 else 0, 10**length - 1
        ways.append(_between(str(max(low, first)), str(min(high, last))))
    return " | ".join(ways)


def _between(low: str, high: str) -> str:
    """Numbers of as many digits as both have."""
    if low == high:
        return f'"{low}"'
    if low[0] == high[0]:
        return f'"{low[0]}" ({_between(low[1:], high[1:])})'
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    ways = []
    if low[1:].strip("0"):
        ways.append(f'"{first}" ({_between(low[1:], "9" * rest)})')
        first += 1
    end = ""
    if high[1:].strip("9"):
        end = f'"{last}" ({_between("0" * rest, high[1:])})'
        last -= 1
    if first <= last:
        ways.append(f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else ""))
    return " | ".join([*ways, end] if end else ways)
