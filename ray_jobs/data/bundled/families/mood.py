"""A customer's words; the answer is positive or negative."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import chatty
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import CITIES, GOODS, NAMES, PLACES

_GOOD = ("wonderful", "excellent", "great", "lovely", "perfect", "a joy", "better than I hoped")
_BAD = (
    "terrible",
    "awful",
    "a disaster",
    "disappointing",
    "useless",
    "a waste of money",
    "worse than I feared",
)
_TEXTS = (
    "The {goods} from {city} are {word}.",
    "{name} told me the {place} was {word}.",
    "My visit to the {place} in {city} was {word}.",
    "I bought {goods} for {name}, and they were {word}.",
    "The service at the {place} was {word}, says {name}.",
)
_ASK = (
    "Positive or negative? One lower-case word: {text}",
    "{text} Label it positive or negative, only the label, lower case.",
    "Mood of the text, positive or negative, one lower-case word: {text}",
)


def generate(draws: Draws) -> Task:
    good = draws.chance(0.5)
    right, wrong = ("positive", "negative") if good else ("negative", "positive")
    text = draws.pick(_TEXTS).format(
        goods=draws.pick(GOODS),
        city=draws.pick(CITIES),
        name=draws.pick(NAMES),
        place=draws.pick(PLACES),
        word=draws.pick(_GOOD if good else _BAD),
    )
    rejected = draws.pick(
        (
            wrong,
            right.title(),
            text,
            f"The review is {right}.",
            chatty(draws, "mood", wrong),
            f"The text is {right} because it describes the experience in {right} words.",
        )
    )
    return Task(ask(draws.pick(_ASK).format(text=text)), right, rejected)


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
