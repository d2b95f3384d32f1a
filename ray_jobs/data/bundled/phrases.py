"""Short sentences of plain words."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.words import ADJECTIVES, ANIMALS, NAMES, PLACES, THINGS, VERBS

_FORMS = (
    "the {adjective} {animal} sleeps near the {place}",
    "{name} {verb} the {adjective} {thing}",
    "a {adjective} {thing} stands in the {place}",
    "{name} {verb} a {thing} at the {place}",
    "the {thing} in the {place} is {adjective}",
    "every {animal} in the {place} is {adjective}",
    "my {adjective} {thing} is in the {place}",
    "{name} and the {animal} {verb} the {thing}",
)


def sentence(draws: Draws) -> str:
    """Five to eight words without punctuation; only a name is written with a capital."""
    return draws.pick(_FORMS).format(
        adjective=draws.pick(ADJECTIVES),
        animal=draws.pick(ANIMALS),
        name=draws.pick(NAMES),
        place=draws.pick(PLACES),
        thing=draws.pick(THINGS),
        verb=draws.pick(VERBS),
    )
