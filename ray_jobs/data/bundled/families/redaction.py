"""A text with a name in it that must not be seen."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import CITIES, DAYS, JOBS, NAMES, THINGS

_ASK = (
    "Replace the name by XXX and write only the new text: {text}",
    "{text}\nRepeat the text with XXX in place of the name. Nothing else.",
    "Hide the name in this text with XXX. Answer with the text only.\n{text}",
)
_TEXTS = (
    "{name} works as a {job} in {city}.",
    "On {day} {name} lost a {thing} in {city}.",
    "Please call {name}, the {job}, on {day}.",
    "The {thing} belongs to {name} from {city}.",
    "We met {name} in {city} last {day}.",
)


def generate(draws: Draws) -> Task:
    facts = {
        "job": draws.pick(JOBS),
        "city": draws.pick(CITIES),
        "day": draws.pick(DAYS),
        "thing": draws.pick(THINGS),
    }
    form, name = draws.pick(_TEXTS), draws.pick(NAMES)
    text, right = form.format(name=name, **facts), form.format(name="XXX", **facts)
    wrong = draws.pick((text, form.format(name="[name]", **facts), text.upper()))
    prompt = draws.pick(_ASK).format(text=text)
    return Task(ask(prompt), right, reject(draws, "new text", right, wrong))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
