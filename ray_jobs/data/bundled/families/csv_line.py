"""Named values, wanted as one line of CSV in a given order."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import chatty
from ray_jobs.data.bundled.task import Task, ask, same_text
from ray_jobs.data.bundled.words import CITIES, COLORS, GOODS, JOBS, NAMES

_ASK = (
    "Write the record as one CSV line in the order {order}, without a header.\n{record}",
    "{record}\nGive only the values as a single CSV line: {order}.",
    "Make one comma-separated line of the values, in the order {order}. No other text.\n{record}",
)
_STYLES = ("{key}: {value}", "{key} = {value}", "{key} is {value}")


def generate(draws: Draws) -> Task:
    record = _record(draws)
    style = draws.pick(_STYLES)
    written = draws.pick(("\n", "; ")).join(style.format(key=key, value=value) for key, value in record)
    order = ",".join(key for key, _ in record)
    right = ",".join(value for _, value in record)
    wrong = draws.pick((f"{order}\n{right}", written, right.replace(",", " | "), f'"{right}"'))
    rejected = draws.pick((wrong, chatty(draws, "CSV line", right), f"```csv\n{order}\n{right}\n```"))
    return Task(ask(draws.pick(_ASK).format(order=order, record=written)), right, rejected)


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer.replace(", ", ","))


def _record(draws: Draws) -> list[tuple[str, str]]:
    if draws.chance(0.5):
        return [
            ("name", draws.pick(NAMES)),
            ("age", str(draws.integer(18, 79))),
            ("job", draws.pick(JOBS)),
            ("city", draws.pick(CITIES)),
        ][: draws.integer(3, 4)]
    return [
        ("item", draws.pick(GOODS)),
        ("color", draws.pick(COLORS)),
        ("quantity", str(draws.integer(2, 60))),
        ("city", draws.pick(CITIES)),
    ][: draws.integer(3, 4)]
