"""Named values on one line, wanted one a line in another style."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.facts import facts
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.task import Task, ask, same_text

_ASK = (
    'Rewrite as lines "key: value", nothing else: {record}',
    '{record}. One "key: value" a line, only the lines:',
    'Only lines of "key: value": {record}',
)


def generate(draws: Draws) -> Task:
    record = facts(draws)
    written = ", ".join(f"{key}={value}" for key, value in record)
    right = "\n".join(f"{key}: {value}" for key, value in record)
    wrong = draws.pick(
        (
            written,
            right.replace("\n", ", "),
            "\n".join(f"- {key}: {value}" for key, value in record),
            "\n".join(f"key: {key}, value: {value}" for key, value in record),
        )
    )
    return Task(ask(draws.pick(_ASK).format(record=written)), right, reject(draws, "record", right, wrong))


def check(reference: str, answer: str) -> bool:
    return same_text(reference, answer)
