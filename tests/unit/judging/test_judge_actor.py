"""Several metrics in one run: every answer is judged by each of them, a preset or a file of one's own."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_jobs.judging.backend import Call, Completion
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.records import as_row
from ray_jobs.stages import judge_actor
from ray_jobs.tables import schema

from .fakes import FakeBackend, prompt, scored

PRESET = "RESPONSE_CORRECTNESS_5POINT"
OWN = """
name: Bareness
criteria: Is the response the bare answer?
rubric: {0: There are words around it., 1: It is.}
required_inputs: [query]
"""


def strict(call: Call) -> Completion:
    """5 of 5 by the preset, 0 of 1 by the metric in the file."""
    return scored(call, 0 if "Is the response the bare answer?" in call.prompt else 5, {})


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend(strict)
    monkeypatch.setattr(judge_actor, "open_engine", lambda *_: None)
    monkeypatch.setattr(judge_actor, "open_backend", lambda *_: fake)
    return fake


def rows_to_judge() -> list[dict[str, Any]]:
    given = (
        ("base", "p1", "yes"),
        ("candidate", "p1", "no"),
        ("candidate", "p2", None),
        ("repeat", "p1", "yes"),
    )
    return [{"subject": subject, **as_row(prompt(row)), "answer": answer} for subject, row, answer in given]


def test_every_answer_is_judged_by_every_metric(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    settings = JudgeSettings(model="m.gguf", metrics=(PRESET, str(path)), cache=False)
    actor = judge_actor.JudgeActor({"judge": settings.model_dump_json(), "seed": 0})
    table = pa.Table.from_pylist(rows_to_judge(), schema=schema(judge_actor.ITEM_COLUMNS))
    found = [
        (row["subject"], row["id"], row["metric"], row["score"], row["failure"])
        for row in actor(table).to_pylist()
    ]
    assert found == [
        (subject, row, metric, score if answered else None, None if answered else "no_answer")
        for metric, score in ((PRESET, 5), ("Bareness", 0))
        for subject, row, answered in (
            ("base", "p1", True),
            ("candidate", "p1", True),
            ("candidate", "p2", False),
            ("repeat", "p1", True),
        )
    ]
    seeds = [{call.seed for call in calls} for calls in backend.rounds]
    assert len(seeds) == 4
    assert not seeds[0] & seeds[1], "answers that are judged again get another seed"


def test_known_pairs_without_a_reference_are_judged_by_the_metrics_that_want_none(
    backend: FakeBackend, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    settings = JudgeSettings(model="m.gguf", metrics=(PRESET, str(path)), cache=False)
    actor = judge_actor.JudgeActor({"judge": settings.model_dump_json(), "seed": 0})
    rows = [
        {"subject": subject, **as_row(prompt(row, reference=reference)), "answer": "yes"}
        for subject, row, reference in (("trust", "p1", None), ("trust", "p2", "yes"), ("repeat", "p1", None))
    ]
    table = pa.Table.from_pylist(rows, schema=schema(judge_actor.ITEM_COLUMNS))
    found = [(row["subject"], row["id"], row["metric"]) for row in actor(table).to_pylist()]
    assert found == [
        ("trust", "p2", PRESET),
        ("trust", "p1", "Bareness"),
        ("trust", "p2", "Bareness"),
        ("repeat", "p1", "Bareness"),
    ]
    wants = {PRESET: True, "Bareness": False}
    assert [row["metric"] for row in judge_actor.quarantined(rows[0], "died: x", metrics=wants)] == [
        "Bareness"
    ]
