"""Which of two answers is the better one, where a column of its own says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_jobs.data.bad_rows import BadRow
from ray_jobs.data.columns import Cells, cell, chosen_column, rejected_column
from ray_jobs.data.settings import Columns, as_plain_text
from ray_jobs.data.turns import is_message

WHAT = ("chosen", "rejected")
VERDICTS = (
    "labels",
    "label",
    "winner",
    "preference",
    "overall_preference",
    "preference_strength",
    "better_response_id",
    "safer_response_id",
)
"""Usual names of columns that say which answer is better."""
_TWINS = ({"a", "b"}, {"0", "1"}, {"1", "2"}, {"first", "second"}, {"one", "two"})
"""What the names of two answers differ in where they do not say which is better."""


@dataclass(frozen=True)
class Side:
    """An answer as it stands in its row; `what` is chosen or rejected."""

    what: str
    column: str
    value: Any


def sides(cells: Cells) -> tuple[Side, Side]:
    """The better and the worse answer.

    Raises BadRow where a column says neither, or where one might say so that columns.winner does not name.
    """
    names = chosen_column(cells.columns), rejected_column(cells.columns)
    winner = cells.columns.winner
    used_as = dict(zip(names, ("first answer", "second answer") if winner else WHAT, strict=True))
    if winner is None:
        if column := undecided(cells.row, cells.columns):
            raise BadRow("undecided", column, hint=hint_for(column))
    else:
        found = as_plain_text(cells.use(winner.column, "winner"))
        if found in map(as_plain_text, winner.rejected):
            names = names[1], names[0]
        elif found not in map(as_plain_text, winner.chosen):
            raise BadRow("no_preference", winner.column)
    chosen, rejected = (
        Side(what, name, _alone(cells.use(name, used_as[name])))
        for what, name in zip(WHAT, names, strict=True)
    )
    return chosen, rejected


def undecided(row: Mapping[str, Any], columns: Columns) -> str | None:
    """The column that says which of two answers is better, where these are told apart by a letter alone."""
    if columns.winner or not columns.chosen or not columns.rejected:
        return None
    return verdict_column(row) if _are_twins(columns.chosen, columns.rejected) else None


def verdict_column(row: Mapping[str, Any]) -> str | None:
    """The column that, by its name, says which answer is better."""
    named = (name for usual in VERDICTS for name in row if name.lower() == usual)
    return next((name for name in named if cell(row, name) not in (None, "")), None)


def hint_for(column: str) -> str:
    return f"which answer is better stands in column {column!r}; use columns.winner: {example_for(column)}"


def example_for(column: str) -> str:
    return f"{{column: {column}, chosen: [values for the first], rejected: [values for the second]}}"


def _are_twins(one: str, other: str) -> bool:
    """Whether two names say nothing of which answer is better: response_a and response_b."""
    if "." in one + other:
        return False
    one, other = _without_common(one.lower(), other.lower())
    one, other = (text[::-1] for text in _without_common(one[::-1], other[::-1]))
    return {one, other} in _TWINS


def _without_common(one: str, other: str) -> tuple[str, str]:
    """Both texts without what both begin with."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return one[length:], other[length:]


def _alone(value: Any) -> Any:
    """A message as a list of one; the text of a list that holds one text."""
    if is_message(value):
        return [value]
    return only_text(value)


def only_text(value: Any) -> Any:
    """The text of a list that holds one text alone; any other value as it is."""
    is_one = isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str)
    return value[0] if is_one else value
