"""A line in capitals, wanted in small letters."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.phrases import sentence
from ray_jobs.data.bundled.task import Task, ask, same_text

_ASK = (
    "Write this in lower case, with no other words: {text}",
    "Turn the line into lower case. Answer with the line only.\n{text}",
    "{text}\nRepeat the line above in small letters and write nothing else.",
    "Lower case please, only the text: {text}",
)


def generate(draws: Draws) -> Task:
    text = sentence(draws).lower()
    prompt = draws.pick(_ASK).format(text=text.upper())
    return Task(
        ask(prompt),
        text,
        reject(
            draws,
            "text in lower case",
            text,
            draws.pick((text.title(), text.upper(), text.capitalize() + ".")),
        ),
    )


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
