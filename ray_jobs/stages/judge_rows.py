"""Which rows are judged first, in which order, and where their results are kept until all are there."""

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ray_jobs.config import Config
from ray_jobs.judging.metrics import check_inputs, outlines_of
from ray_jobs.records import Prompt, as_row, row_seed
from ray_jobs.runs import RunFolder
from ray_jobs.stages import generate
from ray_jobs.stages.answered import WHOLE, Part
from ray_jobs.stages.judge_actor import ITEM_COLUMNS
from ray_jobs.stages.known_pairs import known_pairs, trust_rows
from ray_jobs.stages.micro_batches import begun_batches, path_of
from ray_jobs.tables import ROWS_PER_GROUP, table_of

BASE_ROWS = "rows"
"""In the folder of judgements that were begun: the base's, and those of known pairs."""


def check(config: Config, prompts: Callable[[], Iterable[Prompt]]) -> None:
    """Raises ConfigError for metrics of one name, DataError for a row that lacks what a metric needs."""
    for metric in outlines_of(config.judge.metrics):
        check_inputs(metric, prompts(), config.judge.inputs)


def look_order(ids: Iterable[str], seed: int) -> list[str]:
    """The prompts' IDs by chance, so that an early look sees a fair part of them."""
    return sorted(ids, key=lambda row_id: (row_seed(seed, row_id), row_id))


def look_sizes(shares: Iterable[float], num_prompts: int) -> list[int]:
    """Prompts judged by the end of each look."""
    return [max(1, round(share * num_prompts)) for share in shares]


@dataclasses.dataclass(frozen=True)
class FirstLook:
    """What is judged first: answers to some of the prompts, and the known pairs' rows."""

    ids: frozenset[str]
    known: list[dict[str, Any]]
    num_prompts: int
    """Of the run, those of later looks included."""


def first_look(config: Config, folder: RunFolder) -> FirstLook:
    """What the run's first look takes. Raises what `check` raises."""
    check(config, lambda: generate.iter_prompts(folder))
    order = look_order((prompt.id for prompt in generate.iter_prompts(folder)), config.seed)
    ids = frozenset(order[: look_sizes(config.verdict.sequential.looks, len(order))[0]])
    return FirstLook(ids, trust_rows(config, *known_pairs(config, folder)), len(order))


def is_base_apart(begun: Path | None) -> bool:
    """Whether the base and the known pairs were begun by themselves."""
    return begun is not None and (begun / BASE_ROWS).is_dir()


def parts_of(look: FirstLook, folder: RunFolder, begun: Path | None) -> Iterator[tuple[Path, Iterator[Any]]]:
    """Where the results of the first look's rows are kept, and the rows, in order.

    `begun`: the folder of those that were begun before the stage's turn, which come first: the base and the
    known pairs, micro-batches.
    """
    models, known, judged = generate.models_of(folder), look.known, 0
    if begun and is_base_apart(begun):
        yield begun / BASE_ROWS, row_tables(folder, look.ids, models[:1], known)
        models, known = models[1:], []
    for batch in begun_batches(begun):
        assert begun is not None
        judged = batch[1]
        last = known if judged == look.num_prompts else []
        yield path_of(begun, batch), row_tables(folder, look.ids, models, last, between=batch)
    if judged < look.num_prompts:
        rest = row_tables(folder, look.ids, models, known, between=(judged, None))
        yield folder.path("judgements/unfinished/look-0"), rest


def row_tables(
    folder: RunFolder,
    ids: Container[str],
    models: Sequence[str],
    known: Sequence[Mapping[str, Any]],
    answers_in: RunFolder | None = None,
    between: Part = WHOLE,
) -> Iterator[Any]:
    """Rows to judge: the models' answers to these prompts, then the known ones.

    Answers to one prompt stand together, to share its prefix. `between`: prompts of this part only.
    """
    rows = chain(
        (
            {"subject": model, **as_row(prompt), "answer": answer.answer}
            for prompt, answers in generate.in_step(folder, models, answers_in, between)
            if prompt.id in ids
            for model, answer in zip(models, answers, strict=True)
        ),
        known,
    )
    while some := list(islice(rows, ROWS_PER_GROUP)):
        yield table_of(some, ITEM_COLUMNS)
