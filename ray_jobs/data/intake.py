"""Takes the rows of a data set one by one, and says in the end what became of each."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ray_jobs.data.bad_rows import BadRow
from ray_jobs.data.columns import ABSENT, find, has, prompt_column, source_of, top_column
from ray_jobs.data.formats import RawRow
from ray_jobs.data.loaded import Loaded, fingerprint
from ray_jobs.data.parse import Read
from ray_jobs.data.rendered import Rendered, template_marker, written_list
from ray_jobs.data.settings import Columns, Source
from ray_jobs.data.texts import check_encodes, writable
from ray_jobs.errors import DataError
from ray_jobs.records import Pair, Prompt, Quarantined

MAX_SOURCES_SHOWN = 20
MAX_COLUMNS_SHOWN = 40
MAX_WITHOUT_PROMPT = 0.1
"""Share of rows whose answers begin with nothing in common, where no column holds the prompt."""

Row = TypeVar("Row", Pair, Prompt)

Lack = tuple[str, str]
"""The name of a column that a row lacks, and what to do about it."""


@dataclass
class Intake(Generic[Row]):
    """Holds at most max_rows usable rows. `is_part` says that it sees the first rows of a data set alone."""

    source: Source
    seed: int
    read: Callable[[Mapping[str, Any], Columns], Read[Row]]
    lacks: Callable[[Mapping[str, Any]], Lack | None]
    is_part: bool = False
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
    num_cut: int = 0
    used: dict[str, str] = field(default_factory=dict)
    """Column -> what it was read as."""
    there: dict[str, None] = field(default_factory=dict)
    """The columns that rows had, in order."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reason -> the first row that was left out for it, and what to do."""
    hints: dict[str, str] = field(default_factory=dict)
    """Reason -> what to do about the first such row."""
    templates: Rendered = field(default_factory=Rendered)
    lists: Rendered = field(default_factory=Rendered)
    first_missing: str = ""
    first_columns: str = ""
    absent: dict[str, str] = field(init=False)
    """Fields of `columns` whose column no row had so far."""

    def __post_init__(self) -> None:
        self.absent = self.source.columns.named()

    def take(self, number: int, raw: RawRow) -> None:
        self.num_rows_in += 1
        named = source_of(raw.value, self.source.columns) if isinstance(raw.value, Mapping) else ""
        source = writable(named)
        if source and len(self.sources) < MAX_SOURCES_SHOWN:
            self.sources.add(source)
        if source and source in self.source.exclude_sources:
            self.excluded[source] += 1
            return
        try:
            row = self._typed(raw)
        except BadRow as error:
            self.problems.setdefault(error.reason, f"{raw.place}: {error}")
            self.hints.setdefault(error.reason, error.hint)
            self.quarantined.append(Quarantined(number, error.reason, source))
            return
        self._keep(number, row)

    def _typed(self, raw: RawRow) -> Row:
        if raw.problem is not None:
            raise BadRow(raw.problem)
        if not isinstance(raw.value, Mapping):
            raise BadRow("not_a_row")
        self._look(raw.value, raw.place)
        read = self.read(raw.value, self.source.columns)
        row = read.row
        check_encodes(row.source, self.source.columns.source or "source")
        if isinstance(own := raw.value.get("id"), str):
            check_encodes(own, "id")
        self.num_implicit += not has(raw.value, prompt_column(raw.value, self.source.columns))
        if row.id in self.seen:
            raise BadRow("duplicate")
        self.seen.add(row.id)
        mine = self._own_id(own)
        self._note(raw, read, mine)
        return replace(row, id=mine) if mine else row

    def _look(self, row: Mapping[str, Any], place: str) -> None:
        """What columns a row has, and which it lacks."""
        if not self.first_columns:
            self.first_columns = _names(row)
        if len(self.there) < MAX_COLUMNS_SHOWN:
            self.there |= dict.fromkeys(row)
        self.absent = {name: column for name, column in self.absent.items() if find(row, column) is ABSENT}
        lack = self.lacks(row)
        if lack is None:
            self.num_complete += 1
        elif not self.first_missing:
            name, hint = lack
            more = f"; {hint}" if hint else ""
            self.first_missing = f"{place}: column {name!r} is missing; the row has {_names(row)}{more}"

    def _note(self, raw: RawRow, read: Read[Row], own_id: str | None) -> None:
        """What a usable row was read from, and what in it should not be there."""
        self.used |= read.used
        if read.row.source:
            self.used[top_column(raw.value, self.source.columns.source or "source")] = "source"
        if own_id:
            self.used["id"] = "id"
        self.num_cut += read.is_cut
        self.templates.add(template_marker(read.row), raw.place)
        self.lists.add(written_list(read.row), raw.place)

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
        """Raises DataError for a data set that is of no use, or that would be used for what it is not."""
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
            num_cut=self.num_cut,
            used={name: self.used[name] for name in (*self.there, *self.used) if name in self.used},
            unused=[name for name in self.there if name not in self.used],
            first_problem=self._first_problem(),
            fingerprint=fingerprint(rows),
        )

    def _first_problem(self) -> str:
        """The first row of those that most rows were left out for, and what to do about it."""
        if not self.problems:
            return ""
        reason = self._commonest()
        return self.problems[reason] + (f"; {self.hints[reason]}" if self.hints[reason] else "")

    def _refuse_useless(self) -> None:
        if not self.num_rows_in:
            raise DataError(f"{self.source.source}: holds no rows")
        if self.first_missing and not self.num_complete:
            raise DataError(self.first_missing)
        if "undecided" in self.problems:
            place = self.problems["undecided"].partition(": undecided")[0]
            raise DataError(f"{place}: {self.hints['undecided']}")
        if self.absent and self.first_columns and not self.is_part:
            name, column = next(iter(self.absent.items()))
            raise DataError(
                f"{self.source.source}: columns.{name}: no row has a column {column!r}; the first has "
                f"{self.first_columns}"
            )
        if self.kept:
            self._refuse_accidental_prompts()
            self._refuse_rendered()
            if not self.is_part:
                self._refuse_unknown_sources()
            return
        if self.is_part and self.excluded:
            return
        self._refuse_nothing()

    def _refuse_nothing(self) -> None:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in Counter(row.reason for row in self.quarantined).items()
        )
        left_out = f"{sum(self.excluded.values())} excluded" if self.excluded else ""
        counts = ", ".join(part for part in (reasons, left_out) if part)
        first = f"; first: {self._first_problem()}" if self.problems else ""
        raise DataError(
            f"{self.source.source}: none of its {self.num_rows_in} rows can be used ({counts}){first}"
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
        if not self.num_implicit or without <= MAX_WITHOUT_PROMPT * self.num_rows_in:
            return
        hint = self.hints["empty_prompt"]
        raise DataError(
            f"{self.source.source}: has no column for the prompt, and in {without} of {self.num_rows_in} "
            f"rows the answers begin with nothing in common; its first row has {self.first_columns}; {hint}"
        )

    def _refuse_rendered(self) -> None:
        """What a chat template puts around turns would be trained on, and be put there once more."""
        number = len(self.kept) + self.num_sampled_out
        if self.templates.is_too_much(number):
            raise DataError(
                f"{self.source.source}: {self.templates.count} of {number} rows hold the markers of a chat "
                f"template (first: {self.templates.first}), which a model would learn to write; give the "
                "turns as messages, without them"
            )
        if self.lists.is_too_much(number):
            raise DataError(
                f"{self.source.source}: in {self.lists.count} of {number} rows the prompt is a list in the "
                f"form of text (first: {self.lists.first}); give its turns as messages, or the text alone"
            )

    def _commonest(self) -> str:
        return Counter(row.reason for row in self.quarantined).most_common(1)[0][0]


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(_shown, row)) or "no column"


def _shown(name: Any) -> str:
    """A column's name; quoted where space around it would not be seen."""
    text = writable(str(name))
    return repr(text) if text != text.strip() or not text else text
