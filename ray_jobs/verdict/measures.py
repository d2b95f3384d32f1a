"""What the guards look at besides the judge's scores: length, refusals, courting and speed of the answers."""

from dataclasses import dataclass

from ray_jobs.records import Answer
from ray_jobs.verdict.phrases import courts_judge, refuses


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


class AnswerTotals:
    """Sums over the answers that a model gave, as they are read."""

    def __init__(self) -> None:
        self._answers = self._characters = self._refusals = self._courting = self._tokens = 0
        self._seconds = 0.0

    def add(self, row: Answer) -> None:
        """Rows without an answer count for nothing."""
        if row.answer is None:
            return
        self._answers += 1
        self._characters += len(row.answer)
        self._refusals += refuses(row.answer)
        self._courting += courts_judge(row.answer)
        self._tokens += row.num_answer_tokens
        self._seconds += row.seconds

    def means(self) -> AnswerMeasures:
        if not self._answers:
            return AnswerMeasures(0, None, None, None, None)
        return AnswerMeasures(
            num_answers=self._answers,
            mean_characters=self._characters / self._answers,
            refusal_rate=self._refusals / self._answers,
            courting_rate=self._courting / self._answers,
            tokens_per_second=self._tokens / self._seconds if self._seconds > 0 else None,
        )
