"""Things named in a sentence, wanted as a bullet list."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import ANIMALS, FRUITS, GOODS, TOOLS

_ASK = (
    'Write the {number} things as a list, one a line, each line starting with "- ". No other text.\n{text}',
    '{text}\nTurn this into {number} bullet points that start with "- ". Only the list.',
    'Make a list of the {number} things in the text. Every line begins with "- ". Nothing else.\n{text}',
)
_TEXTS = (
    "We need {things}.",
    "On the list are {things}.",
    "Do not forget {things}.",
    "I saw {things} today.",
)


def generate(draws: Draws) -> Task:
    number = draws.integer(2, 5)
    things = draws.sample(draws.pick((ANIMALS, FRUITS, GOODS, TOOLS)), number)
    text = draws.pick(_TEXTS).format(things=f"{', '.join(things[:-1])} and {things[-1]}")
    return Task(
        ask(draws.pick(_ASK).format(number=number, text=text)),
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
