"""A conversation of several turns, and a fact wanted from an earlier one."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, same_text
from ray_jobs.data.bundled.words import CITIES, GOODS, JOBS, NAMES
from ray_jobs.records import Message

_SYSTEM = (
    "Answer as shortly as you can.",
    "Answer with the bare value.",
    "You answer in one word.",
)
_TOLD = (
    "My name is {name}, I live in {city} and I am a {job}.",
    "I am {name}, a {job} from {city}.",
    "Name {name}, city {city}, job {job}.",
)
_NOTED = ("Thank you, noted.", "Got it.", "Noted.", "All right.")
_ASK = (
    "What is my {key}? Only the {key}.",
    "My {key}? One word.",
    "Which {key} did I give? Only the {key}.",
)


def generate(draws: Draws) -> Task:
    facts = {"name": draws.pick(NAMES), "city": draws.pick(CITIES), "job": draws.pick(JOBS)}
    key = draws.pick(tuple(facts))
    turns = [
        Message("user", draws.pick(_TOLD).format(**facts)),
        Message("assistant", draws.pick(_NOTED)),
    ]
    if draws.chance(0.3):
        turns += [
            Message("user", f"I also want to order {draws.integer(2, 60)} {draws.pick(GOODS)}."),
            Message("assistant", draws.pick(_NOTED)),
        ]
    turns.append(Message("user", draws.pick(_ASK).format(key=key)))
    if draws.chance(0.5):
        turns.insert(0, Message("system", draws.pick(_SYSTEM)))
    other = facts[draws.pick([other for other in facts if other != key])]
    wrong = draws.pick((other, draws.pick(_NOTED), "I'm glad to hear that."))
    spoken = f"Your {key} is {facts[key]}."
    return Task(tuple(turns), facts[key], reject(draws, key, facts[key], wrong, spoken))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
