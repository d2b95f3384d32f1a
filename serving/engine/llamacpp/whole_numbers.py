"""Whole numbers between bounds, as llama.cpp's grammars write them."""

from __future__ import annotations

_MAX_DIGITS = 16
"""Of any number, as everywhere in the converter's grammars; a bound beyond them is none."""
_LIMIT: int = 10**_MAX_DIGITS


def whole_numbers(low: int | None, high: int | None) -> str:
    """A rule for the decimal numbers from `low` to `high`, both included; None: no bound.

    Raises ValueError if there are none, or none of 16 digits at most.
    """
    low = None if low is None or low <= -_LIMIT else low
    high = None if high is None or high >= _LIMIT else high
    least, most = 1 - _LIMIT if low is None else low, _LIMIT - 1 if high is None else high
    if least > most:
        raise ValueError(f"there is no whole number from {low} to {high} of {_MAX_DIGITS} digits at most")
    ways = []
    if least < 0:
        ways.append(f'"-" ({_naturals(max(1, -most), -least)})')
    if most >= 0:
        ways.append(_naturals(max(0, least), most))
    return " | ".join(ways)


def _naturals(low: int, high: int) -> str:
    """Numbers of each length; neighbouring lengths of which all numbers belong to it are one alternative.

    Each alternative is one more that the grammar has to keep open for every token.
    """
    ways: list[str] = []
    full: list[int] = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = 10 ** (length - 1) if length > 1 else 0, 10**length - 1
        if length > 1 and low <= first and last <= high:
            full.append(length)
        else:
            ways.append(_between(str(max(low, first)), str(min(high, last))))
    if full:
        ways.append(f"[1-9] [0-9]{{{full[0] - 1},{full[-1] - 1}}}")
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
