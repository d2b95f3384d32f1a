"""Rows lined up by their IDs, and what keeping them takes of the memory."""

import dataclasses
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from verdict_rows import METRIC, answer, answer_facts, given, inputs, judgement, prompt, scores

from ray_jobs.errors import DataError
from ray_jobs.records import Answer, Prompt
from ray_jobs.verdict.examples import _extremes
from ray_jobs.verdict.facts import AnswerFacts, PromptFacts, ScoreRow, scores_by_metric
from ray_jobs.verdict.inputs import MODELS, VerdictInputs
from ray_jobs.verdict.scored import scored_rows
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.verdict import make_report

MANY = 20_000
MOST_BYTES_KEPT = 80
"""For each prompt and model, of what stays in memory; objects and dicts by ID took 600."""
MOST_BYTES_OF_A_METRIC = 50
"""For each prompt, of one metric's lined-up rows: five numbers."""
MOST_BYTES_AT_ONCE = 150
"""For each prompt, of what lining up takes besides."""


def numbered(number: int) -> Prompt:
    return dataclasses.replace(prompt(number), id=f"p{number:09d}")


def kept(number: int) -> VerdictInputs:
    """What is kept of made-up rows, none of which stays."""

    def answers(model: str) -> Iterator[Answer]:
        return (answer(numbered(row), model) for row in range(number))

    def judged(score: int) -> Iterator[ScoreRow]:
        return ((f"p{row:09d}", METRIC, score + row % 3, score + row / number, None) for row in range(number))

    prompts = PromptFacts.of(numbered(row) for row in range(number))
    facts = {model: AnswerFacts.of(answers(model)) for model in MODELS}
    found = {model: scores_by_metric(judged(score), prompts.ids) for score, model in enumerate(MODELS)}
    checks = {model: np.zeros(number, dtype=np.int8) for model in MODELS}
    return dataclasses.replace(
        inputs([1], [2]), prompts=prompts, answers=facts, judgements=found, checks=checks
    )


def taken(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """What the work gives, the bytes that stay, and the most at once; Arrow's own count as staying."""
    gc.collect()
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        found = work()
        gc.collect()
        stay, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    own = pa.total_allocated_bytes() - arrow
    return found, stay + own, most + own


def test_kept_rows_are_small() -> None:
    """Else a driver's memory would grow with the number of prompts."""
    scored_rows(kept(10), METRIC)  # imports
    facts, stay, _ = taken(lambda: kept(MANY))
    assert stay / MANY / len(MODELS) < MOST_BYTES_KEPT
    _, stay, most = taken(lambda: scored_rows(facts, METRIC))
    assert most / MANY < MOST_BYTES_AT_ONCE
    assert stay / MANY < MOST_BYTES_OF_A_METRIC


def test_a_report_takes_little_besides_the_rows() -> None:
    """No Python object for each row: not for examples, sources, clusters or checks."""
    facts = kept(MANY)
    settings = VerdictSettings(num_resamples=500, num_examples=0, cluster_by="source")
    make_report(facts, settings, 0)  # imports
    _, _, most = taken(lambda: make_report(facts, settings, 0))
    assert most / MANY < MOST_BYTES_AT_ONCE


def test_rows_stand_by_rising_id_whatever_their_order() -> None:
    ids = ["b", "\U0001f600", "\ud800", "a\x00", "a", "\uffff"]
    prompts = [dataclasses.replace(prompt(0), id=row_id) for row_id in ids]
    order = {"base": prompts[::-1], "candidate": prompts[3:] + prompts[:3]}
    rows = scored_rows(
        given(
            prompts,
            {m: [answer(row, m, "x" * ids.index(row.id)) for row in found] for m, found in order.items()},
            {m: [judgement(row.id, ids.index(row.id)) for row in found[::-1]] for m, found in order.items()},
        ),
        METRIC,
    )
    assert [rows.id(row) for row in range(6)] == sorted(ids)
    places = [ids.index(row_id) for row_id in sorted(ids)]
    for found in (rows.base_scores, rows.candidate_scores, rows.base_lengths, rows.candidate_lengths):
        assert found.tolist() == places
    assert rows.prompts_B.tolist() == places


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["p0001", "p0000", "p0001", "x"], "candidate answers: row 'p0001' stands twice"),
        (["p0001", "\ud800", "p0001"], r"candidate answers: row '\\ud800' belongs to no evaluation prompt"),
        (["p0000", "p0001", "p0001", "p0000"], "candidate answers: row 'p0001' stands twice"),
    ],
)
def test_the_first_answer_that_does_not_belong_is_named(ids: list[str], message: str) -> None:
    wrong = [answer(dataclasses.replace(prompt(0), id=row_id), "candidate") for row_id in ids]
    rows = inputs([1, 2], [2, 3])
    with pytest.raises(DataError, match=message):
        scored_rows(
            dataclasses.replace(rows, answers={**rows.answers, **answer_facts({"candidate": wrong})}), METRIC
        )


def test_each_metric_is_lined_up_by_itself() -> None:
    rows = inputs([1, 2], [2, 3])
    style = [judgement("p0001", 5, metric="style"), judgement("p0009", 1, metric="style")]
    judged = {**rows.judgements["base"], **scores({"base": style})["base"]}
    rows = dataclasses.replace(rows, judgements={**rows.judgements, "base": judged})
    assert scored_rows(rows, METRIC).base_scores.tolist() == [1, 2]
    with pytest.raises(DataError, match="base judgements by style: row 'p0009' belongs to no evaluation"):
        scored_rows(rows, "style")


def test_a_judgement_outside_of_its_look_is_refused() -> None:
    rows = dataclasses.replace(inputs([1, 2], [2, 3]), judged=np.array([True, False]))
    with pytest.raises(DataError, match="base judgements by correctness: row 'p0001' belongs to no"):
        scored_rows(rows, METRIC)


def test_why_rows_have_no_score() -> None:
    prompts = [prompt(number) for number in range(6)]
    failed = [
        answer(prompts[1], "base", None, error="late\nand more"),
        answer(prompts[2], "base", None, error=None),
    ]
    found = scored_rows(
        given(
            prompts,
            {
                "base": [answer(prompts[0], "base"), *failed, *(answer(row, "base") for row in prompts[3:5])],
                "candidate": [answer(row, "candidate") for row in prompts],
            },
            {
                "base": [judgement("p0000", 1), judgement("p0001", 2), judgement("p0003", None)],
                "candidate": [judgement(row.id, 3) for row in prompts],
            },
        ),
        METRIC,
    )
    assert list(found.failures["base"].items()) == [
        ("answer: late", 1),
        ("answer: no text", 1),
        ("no answer row", 1),
        ("no_score", 1),
        ("not judged", 1),
    ]
    assert found.failures["candidate"] == {}
    assert [found.id(row) for row in range(found.base_scores.size)] == ["p0000"]


@drawn(st.lists(st.integers(-2, 2), min_size=1, max_size=30), st.integers(1, 40))
def test_extremes_are_gains_then_losses_with_ties_in_order(values: list[int], number: int) -> None:
    rising = sorted(range(len(values)), key=lambda row: (values[row], row))
    num_losses = min(number // 2, len(values) // 2)
    gains = sorted(rising[num_losses:], key=lambda row: (-values[row], row))[: number - num_losses]
    assert _extremes(np.array(values, dtype=float), number).tolist() == [*gains, *rising[:num_losses]]
