"""Facts in a sentence, wanted as a JSON object with given keys."""

import json
from typing import Any

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import chatty
from ray_jobs.data.bundled.task import Task, ask
from ray_jobs.data.bundled.words import CITIES, COLORS, GOODS, JOBS, NAMES

_ASK = (
    "Extract {keys} as JSON, nothing else: {text}",
    "{text} Reply with JSON only, keys {keys}.",
    "JSON only, with the keys {keys}: {text}",
)


def generate(draws: Draws) -> Task:
    text, facts = draws.pick((_person, _order))(draws)
    prompt = draws.pick(_ASK).format(keys=", ".join(facts), text=text)
    return Task(ask(prompt), json.dumps(facts), _rejected(draws, facts))


def check(reference: str, answer: str) -> bool:
    try:
        return _canonical(answer) == _canonical(reference)
    except (ValueError, RecursionError):
        return False


def _canonical(text: str) -> str:
    """The same text for the same value; unlike Python's ==, it tells 1 from true."""
    return json.dumps(json.loads(text), sort_keys=True)


def _person(draws: Draws) -> tuple[str, dict[str, Any]]:
    facts = {"name": draws.pick(NAMES), "age": draws.integer(18, 79), "city": draws.pick(CITIES)}
    job = draws.pick(JOBS)
    form = draws.pick(
        (
            "{name} is a {age} year old {job} from {city}.",
            "The {job} {name}, aged {age}, lives in {city}.",
            "In {city} we met {name}, who is {age} and works as a {job}.",
        )
    )
    return form.format(**facts, job=job), facts


def _order(draws: Draws) -> tuple[str, dict[str, Any]]:
    facts = {"item": draws.pick(GOODS), "quantity": draws.integer(2, 60), "color": draws.pick(COLORS)}
    name = draws.pick(NAMES)
    form = draws.pick(
        (
            "{name} ordered {quantity} {color} {item} last week.",
            "Please send {quantity} {item} in {color} to {name}.",
            "The shop sold {quantity} {color} {item} to {name}.",
        )
    )
    return form.format(**facts, name=name), facts


def _rejected(draws: Draws, facts: dict[str, Any]) -> str:
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    indented = json.dumps(facts, indent=2)
    return draws.pick(
        (
            f"Here is the JSON object you requested:\n\n```json\n{indented}\n```",
            f"Sure! The extracted facts are:\n\n{listed}",
            ", ".join(f"{key} = {value}" for key, value in facts.items()),
            chatty(draws, "JSON object", json.dumps(facts)),
            json.dumps({"text": {key: str(value) for key, value in facts.items()}}),
        )
    )
