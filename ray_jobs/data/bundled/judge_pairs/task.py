"""What a judged task is: a question with one right answer, which the judge sees as the reference."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgedTask:
    """`near`: wrong answers of the kind that a model gives to this very question, if there are any."""

    query: str
    right: str
    what: str = "answer"
    """The right answer's name in a sentence."""
    near: tuple[str, ...] = ()
