"""A data set as typed rows, with an account of every row that is not used.

Rows in = rows used + rows quarantined + rows excluded by source + rows left out by the sample.
"""

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ray_jobs.data.formats import RawRow
from ray_jobs.data.parse import (
    HINTS,
    BadRow,
    brings_prompt,
    check_encodes,
    content_id,
    parse_pair,
    parse_prompt,
    prompt_column,
    source_of,
)
from ray_jobs.data.settings import Columns, Source
from ray_jobs.errors import DataError
from ray_jobs.records import Pair, Prompt, Quarantined

MAX_SOURCES_SHOWN = 20

log = logging.getLogger(__name__)

MAX_WITHOUT_PROMPT = 0.1
"""Share of rows whose answers begin with nothing in common, where no column holds the prompt."""

Row = TypeVar("Row", Pair, Prompt)


@dataclass(frozen=True)
class Loaded(Generic[Row]):
    """The usable rows in the order of the data set, and what became of the others.

    `row_numbers` has, for each row used, its number in the data set, from 1. `excluded` counts rows by
    source, `num_repeated_ids` those whose own id another row has too. `fingerprint` is a sha256 over the ids
    and sources of the rows used, in order.
    """

    rows: tuple[Row, ...]
    row_numbers: tuple[int, ...]
    quarantined: tuple[Quarantined, ...]
    num_rows_in: int
    excluded: Mapping[str, int]
    num_sampled_out: int
    num_repeated_ids: int
    fingerprint: str

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(row.reason for row in self.quarantined).most_common())


def load_pairs(source: Source, seed: int) -> Loaded[Pair]:
    """Raises DataError when the data set cannot be read or holds no usable pair."""
    required = (source.columns.chosen or "chosen", source.columns.rejected or "rejected")

    def missing(row: Mapping[str, Any]) -> str | None:
        prompt = prompt_column(row, source.columns)
        names = required if brings_prompt(row, source.columns) else (*required, prompt)
        return next((name for name in names if name not in row), None)

    return _load(source, seed, parse_pair, missing)


def load_prompts(source: Source, seed: int) -> Loaded[Prompt]:
    """Raises DataError when the data set cannot be read or holds no usable prompt."""

    def missing(row: Mapping[str, Any]) -> str | None:
        columns = source.columns
        names = (columns.conversations or "conversations", "messages", prompt_column(row, columns))
        wanted = columns.conversations or columns.prompt or names[0]
        return None if any(name in row for name in names) else wanted

    return _load(source, seed, parse_prompt, missing)


def raw_rows(source: Source) -> Iterator[RawRow]:
    """The rows of a bundled, local, remote or hub data set, as they were written."""
    if source.kind == "bundled":
        from ray_jobs.data.bundled.rows import bundled_rows

        yield from (
            RawRow(f"{source.source} row {number}", row)
            for number, row in enumerate(bundled_rows(source.source), start=1)
        )
    elif source.kind == "file":
        from ray_jobs.data.files import file_rows

        yield from file_rows(source.source)
    else:
        from ray_jobs.data.hub import hub_rows

        log.info("data     %s: loading from the hub", source.source)
        yield from hub_rows(source)


def _load(
    source: Source,
    seed: int,
    parse: Callable[[Mapping[str, Any], Columns], Row],
    missing: Callable[[Mapping[str, Any]], str | None],
) -> Loaded[Row]:
    intake: _Intake[Row] = _Intake(source, seed, parse, missing)
    for number, raw in enumerate(raw_rows(source), start=1):
        intake.take(number, raw)
    return intake.finish()


@dataclass
class _Intake(Generic[Row]):
    """Takes rows one by one; holds at most max_rows usable ones."""

    source: Source
    seed: int
    parse: Callable[[Mapping[str, Any], Columns], Row]
    missing: Callable[[Mapping[str, Any]], str | None]
    kept: list[tuple[int, int, Row]] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)
    num_rows_in: int = 0
    num_sampled_out: int = 0
    seen: set[str] = field(default_factory=set)
    own_ids: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    num_repeated_ids: int = 0
    num_complete: int = 0
    num_implicit: int = 0
    first_problem: str = ""
    first_missing: str = ""
    first_columns: str = ""
    absent: dict[str, str] = field(init=False)
    """Fields of `columns` whose column no row had so far."""

    def __post_init__(self) -> None:
        self.absent = {name: column for name, column in self.source.columns if column is not None}

    def take(self, number: int, raw: RawRow) -> None:
        self.num_rows_in += 1
        named = source_of(raw.value, self.source.columns) if isinstance(raw.value, Mapping) else ""
        source = _writable(named)
        if source and len(self.sources) < MAX_SOURCES_SHOWN:
            self.sources.add(source)
        if source and source in self.source.exclude_sources:
            self.excluded[source] += 1
            return
        try:
            row = self._typed(raw)
        except BadRow as error:
            self.first_problem = self.first_problem or f"{raw.place}: {error}"
            self.quarantined.append(Quarantined(number, error.reason, source))
            return
        self._keep(number, row)

    def _typed(self, raw: RawRow) -> Row:
        if raw.problem is not None:
            raise BadRow(raw.problem)
        if not isinstance(raw.value, Mapping):
            raise BadRow("not_a_row")
        if not self.first_columns:
            self.first_columns = ", ".join(_shown(name) for name in raw.value) or "no column"
        self.absent = {name: column for name, column in self.absent.items() if column not in raw.value}
        missing = self.missing(raw.value)
        if missing is None:
            self.num_complete += 1
        elif not self.first_missing:
            have = ", ".join(_shown(name) for name in raw.value) or "no column"
            hint = f"; name it with columns.{missing}" if missing in Columns.model_fields else ""
            self.first_missing = f"{raw.place}: column {missing!r} is missing; the row has {have}{hint}"
        row = self.parse(raw.value, self.source.columns)
        check_encodes(row.source, self.source.columns.source or "source")
        if isinstance(own := raw.value.get("id"), str):
            check_encodes(own, "id")
        self.num_implicit += prompt_column(raw.value, self.source.columns) not in raw.value
        if row.id in self.seen:
            raise BadRow("duplicate")
        self.seen.add(row.id)
        mine = self._own_id(own)
        return replace(row, id=mine) if mine else row

    def _own_id(self, own: Any) -> str | None:
        """The id that the data set gives the row, unless it has none or gave it to an earlier row too."""
        if not isinstance(own, int | str) or isinstance(own, bool) or own == "":
            return None
        if str(own) in self.own_ids:
            self.num_repeated_ids += 1
            return None
        self.own_ids.add(str(own))
        return str(own)

    def _keep(self, number: int, row: Row) -> None:
        """A uniform sample that depends on the seed and the rows alone, not on their order."""
        limit = self.source.max_rows
        if limit is None:
            self.kept.append((0, number, row))
            return
        digest = hashlib.sha256(f"{self.seed}:{row.id}".encode("utf-8", "surrogatepass")).digest()
        entry = (-int.from_bytes(digest[:8], "big"), number, row)
        if len(self.kept) < limit:
            heapq.heappush(self.kept, entry)
        else:
            heapq.heappushpop(self.kept, entry)
            self.num_sampled_out += 1

    def finish(self) -> Loaded[Row]:
        self._refuse_useless()
        ordered = sorted(self.kept, key=lambda entry: entry[1])
        rows = tuple(entry[2] for entry in ordered)
        return Loaded(
            rows=rows,
            row_numbers=tuple(entry[1] for entry in ordered),
            quarantined=tuple(self.quarantined),
            num_rows_in=self.num_rows_in,
            excluded=dict(self.excluded),
            num_sampled_out=self.num_sampled_out,
            num_repeated_ids=self.num_repeated_ids,
            fingerprint=fingerprint(rows),
        )

    def _refuse_useless(self) -> None:
        if not self.num_rows_in:
            raise DataError(f"{self.source.source}: holds no rows")
        if self.first_missing and not self.num_complete:
            raise DataError(self.first_missing)
        if self.absent and self.first_columns:
            name, column = next(iter(self.absent.items()))
            raise DataError(
                f"{self.source.source}: columns.{name}: no row has a column {column!r}; the first has "
                f"{self.first_columns}"
            )
        if self.kept:
            self._refuse_accidental_prompts()
            self._refuse_unknown_sources()
            return
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in Counter(row.reason for row in self.quarantined).items()
        )
        left_out = f"{sum(self.excluded.values())} excluded" if self.excluded else ""
        counts = ", ".join(part for part in (reasons, left_out) if part)
        first = f"; first: {self.first_problem}" if self.first_problem else ""
        hint = f"; {HINTS[reason]}" if (reason := self._commonest()) in HINTS else ""
        raise DataError(
            f"{self.source.source}: none of its {self.num_rows_in} rows can be used ({counts}){first}{hint}"
        )

    def _refuse_unknown_sources(self) -> None:
        """A name that excludes nothing is a mistake that would let in what it was to keep out."""
        unknown = [name for name in self.source.exclude_sources if name not in self.excluded]
        if not unknown:
            return
        column = self.source.columns.source or "source"
        found = f"there are {', '.join(sorted(self.sources))}"
        have = found if self.sources else f"no row names one in a column {column!r}"
        raise DataError(
            f"{self.source.source}: exclude_sources: no row has the source {unknown[0]!r}; {have}"
        )

    def _refuse_accidental_prompts(self) -> None:
        """What many pairs of answers do not begin with is no prompt where others do: it was left out."""
        without = sum(row.reason == "empty_prompt" for row in self.quarantined)
        if self.num_implicit and without > MAX_WITHOUT_PROMPT * self.num_rows_in:
            raise DataError(
                f"{self.source.source}: has no column for the prompt, and in {without} of {self.num_rows_in} "
                f"rows the answers begin with nothing in common; its first row has {self.first_columns}"
            )

    def _commonest(self) -> str:
        counted = Counter(row.reason for row in self.quarantined).most_common(1)
        return counted[0][0] if counted else ""


def _writable(text: str) -> str:
    """The text with a question mark for each lone half of a UTF-16 pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(name: Any) -> str:
    """A column's name; quoted where space around it would not be seen."""
    text = str(name)
    return repr(text) if text != text.strip() or not text else text


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
