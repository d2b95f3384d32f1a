"""A template with gaps, wanted with the gaps filled."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import CITIES, DAYS, GOODS, NAMES

_TEMPLATES = (
    "Dear [name], your [item] will arrive on [day].",
    "Hello [name], we ship the [item] to [city] on [day].",
    "[name] picks up the [item] in [city].",
    "Reminder for [name]: bring the [item] on [day].",
    "The [item] for [name] are in [city] until [day].",
)
_ASK = (
    "Fill in the template and answer with the filled text only.\nTemplate: {template}\nValues: {values}",
    "Values: {values}\nWrite this text with the values put in, nothing else: {template}",
    "Replace the words in brackets by their values. Only give the result.\n{template}\n{values}",
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
