"""Things named in a sentence, wanted as a bullet list."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import ANIMALS, FRUITS, GOODS, TOOLS

_ASK = (
    'List the things, each line starting with "- ", nothing else: {text}',
    '{text} As lines that start with "- ", only the list:',
    'Only a list with "- " before each thing: {text}',
)
_TEXTS = (
    "We need {things}.",
    "Please bring {things}.",
    "Do not forget {things}.",
    "I saw {things} today.",
    "They sell {things} here.",
)


def generate(draws: Draws) -> Task:
    number = draws.integer(2, 4)
    things = draws.sample(draws.pick((ANIMALS, FRUITS, GOODS, TOOLS)), number)
    text = draws.pick(_TEXTS).format(things=f"{', '.join(things[:-1])} and {things[-1]}")
    return Task(
        ask(draws.pick(_ASK).format(text=text)),
        "\n".join(f"- {thing}" for thing in things),
        _rejected(draws, things),
    )


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)


def _rejected(draws: Draws, things: list[str]) -> str:
    bullets = "\n".join(f"- {thing}" for thing in things)
    numbered = "\n".join(f"{at}. {thing.title()}" for at, thing in enumerate(things, start=1))
    return draws.pick(
        (
            f"Here is the list:\n\n{bullets}",
            numbered,
            f"Sure! The things are:\n\n{numbered}",
            ", ".join(things),
            "\n".join(f"- I need {thing}." for thing in things),
            "\n".join(f"- {thing}" for thing in things[:-1]) + "\n- and more",
        )
    )
