"""What a task is, and what every family of tasks offers."""

from dataclasses import dataclass
from typing import Protocol

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.records import Message


@dataclass(frozen=True)
class Task:
    """A conversation that ends with a question, its right answer, and one that the base might give."""

    messages: tuple[Message, ...]
    right: str
    rejected: str


class Family(Protocol):
    """A module of `families`: tasks of one kind."""

    def generate(self, draws: Draws) -> Task:
        """A task that follows from the draws alone."""
        ...

    def check(self, reference: str, answer: str) -> bool:
        """Whether `answer` is as right as `reference`."""
        ...


def ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def same_text(reference: str, answer: str) -> bool:
    """Equal but for white space at the ends of the whole and of its lines."""
    return _lines(reference) == _lines(answer)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]
