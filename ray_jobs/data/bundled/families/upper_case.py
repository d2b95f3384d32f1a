"""A line, wanted in capitals."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.phrases import sentence
from ray_jobs.data.bundled.task import Task, ask, same_text

_ASK = (
    "Write this in capital letters, with no other words: {text}",
    "Turn the line into upper case. Answer with the line only.\n{text}",
    "{text}\nRepeat the line above in capital letters and write nothing else.",
    "Upper case please, only the text: {text}",
)


def generate(draws: Draws) -> Task:
    text = sentence(draws).lower()
    prompt = draws.pick(_ASK).format(text=text)
    return Task(
        ask(prompt),
        text.upper(),
        reject(
            draws, "text in capitals", text.upper(), draws.pick((text.title(), text.capitalize() + ".", text))
        ),
    )


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
