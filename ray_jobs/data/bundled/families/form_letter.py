"""A template with gaps, wanted with the gaps filled."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import CITIES, DAYS, GOODS, NAMES

_TEMPLATES = (
    "Dear [name], your [item] arrive on [day]",
    "Hello [name], the [item] are in [city]",
    "[name] picks up the [item] in [city]",
    "[name], please bring the [item] on [day]",
    "The [item] for [name] go to [city]",
)
_ASK = (
    "Fill in, only the text: {template} ({values})",
    "{values}. Put the values in and write only the text: {template}",
    "Only the filled text: {template} with {values}",
)


def generate(draws: Draws) -> Task:
    template = draws.pick(_TEMPLATES)
    values = {
        "name": draws.pick(NAMES),
        "item": draws.pick(GOODS),
        "city": draws.pick(CITIES),
        "day": draws.pick(DAYS),
    }
    used = {key: value for key, value in values.items() if f"[{key}]" in template}
    right, wrong = template, template
    for key, value in used.items():
        right = right.replace(f"[{key}]", value)
        wrong = wrong.replace(f"[{key}]", value if key == "name" else f"[{value}]")
    wrong = draws.pick((wrong, template))
    listed = ", ".join(f"{key} = {value}" for key, value in used.items())
    prompt = draws.pick(_ASK).format(template=template, values=listed)
    return Task(ask(prompt), right, reject(draws, "filled text", right, wrong))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
