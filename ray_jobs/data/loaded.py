"""A data set as typed rows, with an account of every row that is not used.

Rows in = rows used + rows quarantined + rows excluded by source + rows left out by the sample.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ray_jobs.data.parse import content_id
from ray_jobs.records import Pair, Prompt, Quarantined

Row = TypeVar("Row", Pair, Prompt)


@dataclass(frozen=True)
class Loaded(Generic[Row]):
    """The usable rows in the order of the data set, and what became of the others.

    `row_numbers` has, for each row used, its number in the data set, from 1. `excluded` counts rows by
    source, `num_repeated_ids` those whose own id another row has too, `num_cut` those whose answers began
    with the prompt, which was cut off. `used` has what each column was read as, `unused` the other names.
    `first_problem` is the place, reason and remedy of the first row of those that most rows were left out
    for. `fingerprint` is a sha256 over the ids and sources of the rows used, in order.
    """

    rows: tuple[Row, ...]
    row_numbers: tuple[int, ...]
    quarantined: tuple[Quarantined, ...]
    num_rows_in: int
    excluded: Mapping[str, int]
    num_sampled_out: int
    num_repeated_ids: int
    num_cut: int
    used: Mapping[str, str]
    unused: Sequence[str]
    first_problem: str
    fingerprint: str

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(row.reason for row in self.quarantined).most_common())


def fingerprint(rows: Iterable[Pair | Prompt]) -> str:
    """sha256 over the rows used, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(content_id(row.id, row.source, *_texts(row)).encode())
    return digest.hexdigest()


def _texts(row: Pair | Prompt) -> Iterator[str]:
    for message in row.prompt if isinstance(row, Pair) else row.messages:
        yield from (message.role, message.content)
    yield from (row.chosen, row.rejected) if isinstance(row, Pair) else (row.reference or "",)
