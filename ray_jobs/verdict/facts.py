"""What a verdict keeps of every row: columns of numbers, no texts. Those of few rows are fetched to be shown.

Columns have one value a row, B of them.
"""

import hashlib
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_jobs.records import Answer, Prompt
from ray_jobs.verdict.coded import Coded, CodedBuilder
from ray_jobs.verdict.ids import Ids, IdsBuilder, Rows
from ray_jobs.verdict.measures import AnswerMeasures, AnswerTotals

Checks = NDArray[np.int8]
"""Whether a program finds the answer to each prompt right: RIGHT, WRONG or UNCHECKED."""
WRONG, RIGHT, UNCHECKED = 0, 1, -1
NO_ANSWER = -1

SCORE_COLUMNS = ("id", "metric", "score", "expected_score", "failure")
ScoreRow = tuple[str, str, int | None, float | None, str | None]
"""The columns of a judgement that a verdict keeps."""


@dataclass(frozen=True)
class PromptFacts:
    ids: Ids
    sources: Coded
    openings_B: NDArray[np.uint64]
    """Hash of the first user turn, which rows of one conversation share. Two of a million unlike turns have
    the same 64 bits in one of some 40 million runs."""

    @classmethod
    def of(cls, rows: Iterable[Prompt]) -> "PromptFacts":
        builder = PromptBuilder()
        for row in rows:
            builder.add(row)
        return builder.build()

    def __len__(self) -> int:
        return len(self.ids)


class PromptBuilder:
    """Prompts that are read one after another."""

    def __init__(self) -> None:
        self._ids, self._sources, self._openings = IdsBuilder(), CodedBuilder(), array("Q")

    def add(self, row: Prompt) -> None:
        first = next((message.content for message in row.messages if message.role == "user"), row.id)
        digest = hashlib.sha256(first.encode("utf-8", "surrogatepass")).digest()
        self._ids.add(row.id)
        self._sources.add(row.source)
        self._openings.append(int.from_bytes(digest[:8], "big"))

    def build(self) -> PromptFacts:
        return PromptFacts(self._ids.build(), self._sources.build(), column(self._openings, np.uint64))


@dataclass(frozen=True)
class AnswerRows:
    ids: Ids
    characters_B: NDArray[np.int32]
    """NO_ANSWER exactly where `errors` says why."""
    errors: Coded

    def take(self, rows_B: Rows) -> "AnswerRows":
        return AnswerRows(self.ids.take(rows_B), self.characters_B[rows_B], self.errors.take(rows_B))

    @property
    def num_answered(self) -> int:
        return int((self.characters_B != NO_ANSWER).sum())


@dataclass(frozen=True)
class AnswerFacts:
    """One model's answers: what is kept of each, and what they come to."""

    rows: AnswerRows
    measures: AnswerMeasures
    backends: frozenset[str]
    """Of the engines that wrote them, where rows tell."""

    @classmethod
    def of(cls, rows: Iterable[Answer]) -> "AnswerFacts":
        builder = AnswerBuilder()
        for row in rows:
            builder.add(row)
        return builder.build()


class AnswerBuilder:
    """Answers that are read one after another."""

    def __init__(self) -> None:
        self._ids, self._characters, self._errors = IdsBuilder(), array("i"), CodedBuilder()
        self._totals = AnswerTotals()
        self._backends: set[str] = set()

    def add(self, row: Answer) -> None:
        text = row.answer
        self._ids.add(row.id)
        self._characters.append(NO_ANSWER if text is None else len(text))
        self._errors.add(None if text is not None else (row.error or "no text").splitlines()[0][:80])
        self._totals.add(row)
        if row.backend is not None:
            self._backends.add(row.backend)

    def build(self, prompts: Ids | None = None) -> AnswerFacts:
        """`prompts`: IDs that are held anyway, in place of the same ones once more."""
        rows = AnswerRows(
            shared(self._ids.build(), prompts), column(self._characters, np.int32), self._errors.build()
        )
        return AnswerFacts(rows, self._totals.means(), frozenset(self._backends))


@dataclass(frozen=True)
class Scores:
    """What a judge said of one model's answers by one metric."""

    ids: Ids
    scores_B: NDArray[np.float64]
    """Not a number exactly where `failures` says why."""
    expected_B: NDArray[np.float64]
    has_expected_B: NDArray[np.bool_]
    failures: Coded


class ScoreBuilder:
    """Judgements by one metric that are read one after another."""

    def __init__(self) -> None:
        self._ids, self._failures = IdsBuilder(), CodedBuilder()
        self._scores, self._expected, self._has_expected = array("d"), array("d"), array("b")

    def add(self, row_id: str, score: int | None, expected: float | None, failure: str | None) -> None:
        self._ids.add(row_id)
        self._scores.append(np.nan if score is None else score)
        self._expected.append(np.nan if expected is None else expected)
        self._has_expected.append(expected is not None)
        self._failures.add(None if score is not None else failure or "no_score")

    def build(self, prompts: Ids | None = None) -> Scores:
        """`prompts` as for answers."""
        return Scores(
            shared(self._ids.build(), prompts),
            column(self._scores, np.float64),
            column(self._expected, np.float64),
            column(self._has_expected, np.bool_),
            self._failures.build(),
        )


def scores_by_metric(rows: Iterable[ScoreRow], prompts: Ids | None = None) -> dict[str, Scores]:
    """Metric -> its scores; metrics in the order in which they come up. `prompts` as for answers."""
    builders: dict[str, ScoreBuilder] = {}
    for row_id, metric, score, expected, failure in rows:
        if metric not in builders:
            builders[metric] = ScoreBuilder()
        builders[metric].add(row_id, score, expected, failure)
    return {metric: builder.build(prompts) for metric, builder in builders.items()}


def shared(ids: Ids, others: Ids | None) -> Ids:
    """The others where they are the same ones, so that one of the two can go."""
    return others if others is not None and others.same_as(ids) else ids


def column(values: "array[Any]", kind: type[np.generic]) -> NDArray[Any]:
    """The same memory as an array."""
    return np.frombuffer(values, dtype=kind)


@dataclass(frozen=True)
class Texts:
    """One prompt with what both models wrote and what the judge said of it; mappings are by model."""

    prompt: Prompt
    answers: Mapping[str, str | None]
    feedback: Mapping[str, str | None]


class FetchTexts(Protocol):
    """Texts by prompt ID, with the feedback of one metric."""

    def __call__(self, ids: Collection[str], metric: str) -> Mapping[str, Texts]: ...
