"""The bundled data sets as rows, in the schemas of orpo-dpo-mix-40k and FineTome-100k."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.families import FAMILIES, PREFIX
from ray_jobs.data.bundled.task import Task
from ray_jobs.data.overlap import leak_key
from ray_jobs.records import Message

PAIRS_PER_FAMILY = 120
PROMPTS_PER_FAMILY = 40
NUM_JUDGE_PAIRS = 120_000
NUM_ROWS = {
    "bundled:pairs": PAIRS_PER_FAMILY * len(FAMILIES),
    "bundled:prompts": PROMPTS_PER_FAMILY * len(FAMILIES),
    "bundled:judge-pairs": NUM_JUDGE_PAIRS,
}
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def bundled_rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a bundled data set, the families in turn; the same ones every time."""
    if name == "bundled:judge-pairs":
        from ray_jobs.data.bundled.judge_pairs.rows import judge_pair_rows

        yield from judge_pair_rows()
        return
    tasks = {family: _tasks(family)[name == "bundled:prompts"] for family in FAMILIES}
    write = _prompt_row if name == "bundled:prompts" else _pair_row
    for together in zip(*tasks.values(), strict=True):
        yield from (write(PREFIX + family, task) for family, task in zip(tasks, together, strict=True))


@lru_cache
def _tasks(family: str) -> tuple[Sequence[Task], Sequence[Task]]:
    """Tasks for pairs and tasks for prompts; the hash of its prompt decides where a task belongs."""
    found: tuple[dict[str, Task], dict[str, Task]] = ({}, {})
    wanted = (PAIRS_PER_FAMILY, PROMPTS_PER_FAMILY)
    number = 0
    while any(len(tasks) < limit for tasks, limit in zip(found, wanted, strict=True)):
        task = FAMILIES[family].generate(Draws(f"{family}:{number}"))
        number += 1
        key = leak_key(task.messages)
        side = int(key, 16) % 4 == 0
        if len(found[side]) < wanted[side]:
            found[side].setdefault(key, task)
    return tuple(found[0].values()), tuple(found[1].values())


def _pair_row(source: str, task: Task) -> dict[str, Any]:
    """Columns of mlabonne/orpo-dpo-mix-40k."""
    turns = [{"role": message.role, "content": message.content} for message in task.messages]
    question = task.messages[-1].content
    return {
        "source": source,
        "chosen": [*turns, {"role": "assistant", "content": task.right}],
        "rejected": [*turns, {"role": "assistant", "content": task.rejected}],
        "prompt": question,
        "question": question,
    }


def _prompt_row(source: str, task: Task) -> dict[str, Any]:
    """Columns of mlabonne/FineTome-100k."""
    turns = (*task.messages, Message("assistant", task.right))
    return {
        "conversations": [{"from": _SPEAKERS[turn.role], "value": turn.content} for turn in turns],
        "source": source,
        "score": 5.0,
    }
