"""A word at a given place of a line."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import ANIMALS, FRUITS, GOODS, THINGS, TOOLS

_PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}
_ASK = (
    "What is the {place} word of this list? Answer with that word only.\n{words}",
    "{words}\nWrite only the {place} word of the line above.",
    "Give the {place} item and nothing else: {words}",
)


def generate(draws: Draws) -> Task:
    words = draws.sample(draws.pick((ANIMALS, FRUITS, GOODS, THINGS, TOOLS)), draws.integer(4, 6))
    place = draws.pick(tuple(_PLACES))
    right = words[_PLACES[place]]
    wrong = draws.pick([word for word in words if word != right])
    spoken = f"The {place} word in the list is {right}."
    prompt = draws.pick(_ASK).format(place=place, words=", ".join(words))
    return Task(ask(prompt), right, reject(draws, f"{place} word", right, wrong, spoken))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
