"""A small table, and one value wanted from it."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import CITIES, JOBS, NAMES

_ASK = (
    "{table}\nWhat is the {key} of {name}? Answer with the value only.",
    "Table:\n{table}\n\nGive only the {key} of {name}.",
    "Look up the {key} of {name} and reply with nothing but that value.\n{table}",
)


def generate(draws: Draws) -> Task:
    names = draws.sample(NAMES, 3)
    columns = {"city": draws.sample(CITIES, 3), "job": draws.sample(JOBS, 3)}
    rows = [",".join((name, columns["city"][at], columns["job"][at])) for at, name in enumerate(names)]
    at, key = draws.integer(0, 2), draws.pick(("city", "job"))
    right = columns[key][at]
    wrong = draws.pick((columns[key][(at + 1) % 3], rows[at], names[at]))
    spoken = f"The {key} of {names[at]} is {right}."
    prompt = draws.pick(_ASK).format(table="\n".join(("name,city,job", *rows)), key=key, name=names[at])
    return Task(ask(prompt), right, reject(draws, key, right, wrong, spoken))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
