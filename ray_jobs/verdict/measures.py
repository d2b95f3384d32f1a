"""What the guards look at besides the judge's scores: length, refusals, courting and speed of the answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.verdict.facts import AnswerFacts


@dataclass(frozen=True)
class AnswerMeasures:
    """Means over the answers that a model gave; null where it gave none."""

    num_answers: int
    mean_characters: float | None
    refusal_rate: float | None
    courting_rate: float | None
    """Share of answers that speak of their own score, rubric or merits."""
    tokens_per_second: float | None
    """Generated tokens over the time each answer took, queueing among other answers included."""


def measure(answers: Sequence[AnswerFacts]) -> AnswerMeasures:
    given = [answer for answer in answers if answer.characters is not None]
    if not given:
        return AnswerMeasures(0, None, None, None, None)
    seconds = sum(answer.seconds for answer in given)
    num_tokens = sum(answer.num_tokens for answer in given)
    return AnswerMeasures(
        num_answers=len(given),
        mean_characters=sum(answer.characters or 0 for answer in given) / len(given),
        refusal_rate=sum(answer.refuses for answer in given) / len(given),
        courting_rate=sum(answer.courts_judge for answer in given) / len(given),
        tokens_per_second=num_tokens / seconds if seconds > 0 else None,
    )
