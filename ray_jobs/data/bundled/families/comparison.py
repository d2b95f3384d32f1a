"""Two numbers to compare; the answer is yes or no."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import chatty
from ray_jobs.data.bundled.task import Task, ask, same_text

_ASK = (
    "Is {first} {relation} {second}? Answer with one word in lower case: yes or no.",
    "Reply with only yes or no, in lower case: is {first} {relation} {second}?",
    "{first} is {relation} {second}. True? Say only yes or no, in lower case.",
)


def generate(draws: Draws) -> Task:
    first, second = draws.integer(10, 999), draws.integer(10, 999)
    second += first == second
    relation = draws.pick(("greater than", "less than", "larger than", "smaller than"))
    holds = (first > second) == (relation in ("greater than", "larger than"))
    right, wrong = ("yes", "no") if holds else ("no", "yes")
    spoken = f"{right.title()}, {first} is {'' if holds else 'not '}{relation} {second}."
    rejected = draws.pick((wrong, spoken, spoken, chatty(draws, "answer", wrong), right.title() + "."))
    prompt = draws.pick(_ASK).format(first=first, relation=relation, second=second)
    return Task(ask(prompt), right, rejected)


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
