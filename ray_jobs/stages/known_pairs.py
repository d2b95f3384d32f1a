"""The pairs whose better answer is known, as rows for the judge."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_jobs.config import Config
from ray_jobs.judging.metrics import outline_of, wants_reference
from ray_jobs.records import Pair, as_row, pair_from_row
from ray_jobs.runs import RunFolder
from ray_jobs.tables import read_rows

if TYPE_CHECKING:
    from ray_jobs.judging.inputs import JudgeItem


def known_pairs(config: Config, folder: RunFolder) -> tuple[list[Pair], dict[str, str] | None]:
    """The pairs whose better answer is known, with their references, where a metric wants one."""
    pairs = [pair_from_row(row) for row in read_rows(folder.path("data/trust.parquet"))]
    pairs = pairs[: config.judge.trust.num_pairs]
    return pairs, trust_references(config, pairs)


def trust_references(config: Config, pairs: Sequence[Pair]) -> dict[str, str] | None:
    """References of the known pairs, where a metric wants one; else None."""
    from ray_jobs.judging import trust as known

    wanted = any(wants_reference(outline_of(metric), config.judge.inputs) for metric in config.judge.metrics)
    return known.trust_references(pairs, config.judge.trust.reference) if wanted else None


def known_items(
    config: Config, pairs: Sequence[Pair], references: Mapping[str, str] | None
) -> list["JudgeItem"]:
    """Both answers of each known pair that some metric can judge."""
    from ray_jobs.judging.trust import trust_items

    every = all(wants_reference(outline_of(metric), config.judge.inputs) for metric in config.judge.metrics)
    return trust_items(pairs, references, keep_all=not every)


def trust_rows(
    config: Config, pairs: Sequence[Pair], references: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    """Both answers of each known pair, and those of the first once more: of all, and with a reference."""
    from ray_jobs.judging.trust import repeated_items

    items = known_items(config, pairs, references)
    compared = [item for item in items if item.prompt.reference is not None]
    again = {
        item.id
        for chosen in (items, compared)
        for item in repeated_items(chosen, config.judge.trust.num_repeats)
    }
    repeats = [item for item in items if item.id in again]
    return [
        {"subject": subject, **as_row(item.prompt), "id": item.id, "answer": item.answer}
        for subject, chosen in (("trust", items), ("repeat", repeats))
        for item in chosen
    ]
