"""Words, wanted in alphabetical order on one line."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import ANIMALS, FRUITS, GOODS, PLACES, THINGS

_ASK = (
    "Sort from A to Z, one line, only the words: {words}",
    "Alphabetical order, one line, nothing else: {words}",
    "{words}. Sort these from A to Z on one line, only the words.",
)


def generate(draws: Draws) -> Task:
    words = draws.sample(draws.pick((ANIMALS, FRUITS, GOODS, PLACES, THINGS)), 3)
    right, given = ", ".join(sorted(words)), ", ".join(words)
    wrong = (
        draws.pick((given, right.title(), f"A: {given}")) if given != right else ", ".join(reversed(words))
    )
    spoken = "\n".join(f"{number}. {word}" for number, word in enumerate(sorted(words), start=1))
    prompt = draws.pick(_ASK).format(words=given)
    return Task(ask(prompt), right, reject(draws, "list in alphabetical order", right, wrong, spoken))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
