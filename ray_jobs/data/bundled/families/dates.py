"""A date in words, wanted in digits."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import MONTHS

_ASK = (
    "Write {date} as YYYY-MM-DD, only the date.",
    "{date} in the form YYYY-MM-DD, nothing else:",
    "Convert to YYYY-MM-DD, only the date: {date}",
)
_WRITTEN = ("{day} {month} {year}", "{month} {day}, {year}")


def generate(draws: Draws) -> Task:
    year, month, day = draws.integer(1950, 2029), draws.integer(1, 12), draws.integer(1, 28)
    written = draws.pick(_WRITTEN).format(day=day, month=MONTHS[month - 1], year=year)
    right = f"{year}-{month:02}-{day:02}"
    wrong = draws.pick(
        (
            f"{month:02}/{day:02}/{year}",
            f"{day}-{month}-{year}",
            f"{year}-{month % 12 + 1:02}-{day:02}",
            written,
        )
    )
    prompt = draws.pick(_ASK).format(date=written)
    return Task(ask(prompt), right, reject(draws, "date", right, wrong))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
