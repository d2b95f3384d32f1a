"""What the guards look at besides the judge's scores: length, refusals and speed of the answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.records import Answer

_REFUSAL = re.compile(
    r"\s*(?:unfortunately,? |i apologi[sz]e[,.]? (?:but )?"
    r"|(?:i['\u2019]m |i am )?(?:very |so )?sorry[,.]? (?:but )?)*"
    r"(?:as an ai\b|i (?:can(?:not|['\u2019]t| not)|won['\u2019]t|will not|am (?:not able|unable))\b"
    r"|i['\u2019]m (?:not able|unable)\b)",
    re.IGNORECASE,
)
"""How refusals open. Only the opening is read: an answer may rightly speak of what cannot be done."""


@dataclass(frozen=True)
class AnswerMeasures:
    """Means over the answers that a model gave; null where it gave none."""

    num_answers: int
    mean_characters: float | None
    refusal_rate: float | None
    tokens_per_second: float | None
    """Generated tokens over the time each answer took, queueing among other answers included."""


def measure(answers: Sequence[Answer]) -> AnswerMeasures:
    given = [answer for answer in answers if answer.answer is not None]
    if not given:
        return AnswerMeasures(0, None, None, None)
    seconds = sum(answer.seconds for answer in given)
    num_tokens = sum(answer.num_answer_tokens for answer in given)
    return AnswerMeasures(
        num_answers=len(given),
        mean_characters=sum(len(answer.answer or "") for answer in given) / len(given),
        refusal_rate=sum(refuses(answer.answer or "") for answer in given) / len(given),
        tokens_per_second=num_tokens / seconds if seconds > 0 else None,
    )


def refuses(answer: str) -> bool:
    """Whether an answer opens as English refusals do."""
    return _REFUSAL.match(answer) is not None
