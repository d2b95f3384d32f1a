"""Words to count; the answer is a bare number."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import chatty
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import ANIMALS, FRUITS, GOODS, THINGS, TOOLS

_ASK = (
    "How many items? Only the number: {words}",
    "Count the items, only the number: {words}",
    "{words}. How many are these? Only the number.",
)


def generate(draws: Draws) -> Task:
    number = draws.integer(2, 5)
    words = draws.sample(draws.pick((ANIMALS, FRUITS, GOODS, THINGS, TOOLS)), number)
    wrong = str(number + draws.pick((-1, 1, 2)))
    spoken = f"There are {number} words in the list."
    listed = f"The items are: {', '.join(words)}"
    rejected = draws.pick((wrong, spoken, chatty(draws, "number", wrong), listed, f"{wrong} {wrong}"))
    return Task(ask(draws.pick(_ASK).format(words=", ".join(words))), str(number), rejected)


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
