"""Answers that decline."""

import re

_REFUSAL = re.compile(
    r"\s*(?:unfortunately,? |i apologi[sz]e[,.]? (?:but )?"
    r"|(?:i['\u2019]m |i am )?(?:very |so )?sorry[,.]? (?:but )?)*"
    r"(?:as an ai\b|i (?:can(?:not|['\u2019]t| not)|won['\u2019]t|will not|am (?:not able|unable))\b"
    r"|i['\u2019]m (?:not able|unable)\b)",
    re.IGNORECASE,
)
"""How refusals open. Only the opening is read: an answer may rightly speak of what cannot be done."""


def refuses(answer: str) -> bool:
    """Whether an answer opens as English refusals do."""
    return _REFUSAL.match(answer) is not None
