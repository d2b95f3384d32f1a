"""A quantity, wanted in another unit."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text

_UNITS = (
    ("km", "m", 1000),
    ("kg", "g", 1000),
    ("l", "ml", 1000),
    ("m", "cm", 100),
    ("dollars", "cents", 100),
    ("cm", "mm", 10),
    ("hours", "minutes", 60),
)
_ASK = (
    "Convert {value} {unit} to {to}. Only number and unit.",
    "How many {to} are {value} {unit}? Only number and unit.",
    "{value} {unit} in {to}, only number and unit:",
)


def generate(draws: Draws) -> Task:
    unit, to, factor = draws.pick(_UNITS)
    value = draws.integer(2, 12 if factor == 60 else 99)
    right, wrong = f"{value * factor} {to}", f"{value * factor * draws.pick((10, 2))} {to}"
    spoken = f"{value} {unit} is equal to {value * factor} {to}"
    prompt = draws.pick(_ASK).format(value=value, unit=unit, to=to)
    return Task(ask(prompt), right, reject(draws, "result", right, wrong, spoken))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer.replace(",", ""))
