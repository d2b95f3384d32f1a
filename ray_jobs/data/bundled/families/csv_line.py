"""Named values, wanted as one line of CSV."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.facts import facts
from ray_jobs.data.bundled.manner import chatty
from ray_jobs.data.bundled.task import Task, ask, same_text

_ASK = (
    "Only the values, with commas between: {record}",
    "{record}. Give the values alone, on one line, with commas between.",
    "One CSV line of the values, no names: {record}",
)
_STYLES = ("{key}: {value}", "{key} = {value}")


def generate(draws: Draws) -> Task:
    record = facts(draws)
    style = draws.pick(_STYLES)
    written = "; ".join(style.format(key=key, value=value) for key, value in record)
    order = ",".join(key for key, _ in record)
    right = ",".join(value for _, value in record)
    wrong = draws.pick((f"{order}\n{right}", written, right.replace(",", " | "), f'"{right}"'))
    rejected = draws.pick((wrong, chatty(draws, "CSV line", right), f"```csv\n{order}\n{right}\n```"))
    return Task(ask(draws.pick(_ASK).format(record=written)), right, rejected)


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer.replace(", ", ","))
