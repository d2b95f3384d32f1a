"""What the verdict stage keeps of a run's files."""

from pathlib import Path

import pytest
from verdict_rows import METRIC, answer, judgement, prompt

from ray_jobs.data.bundled.families import PREFIX
from ray_jobs.records import Answer, Judgement, as_row
from ray_jobs.runs import RunFolder
from ray_jobs.stages import judge, verdict
from ray_jobs.stages.generate import ANSWERS, MODELS
from ray_jobs.tables import PROMPT_COLUMNS, write_rows
from ray_jobs.verdict.facts import RIGHT, UNCHECKED, WRONG
from ray_jobs.verdict.ids import Ids


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three prompts, the last with a check; the candidate is right, the base gives no answer."""
    made = RunFolder(tmp_path)
    prompts = [prompt(2), prompt(0), prompt(1)]
    rows = [{**as_row(row), "reference": "4"} for row in prompts]
    rows[2]["source"] = f"{PREFIX}counting"
    write_rows(made.path("data/prompts.parquet"), rows, PROMPT_COLUMNS)
    for model in MODELS:
        texts = ["x", "y", "4" if model == "candidate" else None]
        answers = [
            as_row(answer(row, model, text, source=given["source"]))
            for row, text, given in zip(prompts, texts, rows, strict=True)
        ]
        write_rows(made.path(ANSWERS.format(model=model)), answers, Answer.COLUMNS)
        judged = [
            as_row(judgement(row.id, 3, metric=metric)) for row in prompts for metric in (METRIC, "style")
        ]
        write_rows(made.path(judge.JUDGEMENTS.format(subject=model)), judged, Judgement.COLUMNS)
    return made


def test_ids_are_kept_once(folder: RunFolder) -> None:
    """Answers and each metric's scores stand in the order of the prompts, so that theirs are enough."""
    facts = verdict.read_facts(folder, MODELS)
    assert [*facts.prompts.ids] == ["p0002", "p0000", "p0001"]
    for model in MODELS:
        assert facts.answers[model].rows.ids is facts.prompts.ids
        assert list(facts.scores[model]) == [METRIC, "style"]
        assert all(scores.ids is facts.prompts.ids for scores in facts.scores[model].values())


def test_no_answer_is_a_wrong_one(folder: RunFolder) -> None:
    checks = verdict.read_facts(folder, MODELS).checks
    assert checks["base"].tolist() == [UNCHECKED, UNCHECKED, WRONG]
    assert checks["candidate"].tolist() == [UNCHECKED, UNCHECKED, RIGHT]


def test_texts_are_those_of_the_wanted_prompts(folder: RunFolder) -> None:
    roles = {"base": "base", "candidate": "candidate"}
    texts = verdict.fetch_texts(folder, roles, ["p0001", "p0002"], "style")
    assert set(texts) == {"p0001", "p0002"}
    assert texts["p0001"].answers == {"base": None, "candidate": "4"}
    assert texts["p0002"].feedback == {"base": "worth 3", "candidate": "worth 3"}
    assert texts["p0002"].prompt.messages == prompt(2).messages


def test_a_look_judges_the_first_prompts_of_its_order() -> None:
    ids = [f"p{number}" for number in range(300)] + ["", "é", "\ud800", "\U0001f600"]
    for number in (1, 40, 303):
        judged = verdict.judged_prompts(Ids.of(ids), number, 3)
        assert judged is not None
        first = judge.look_order(ids, 3)[:number]
        assert {row_id for row_id, one in zip(ids, judged, strict=True) if one} == set(first)
    assert verdict.judged_prompts(Ids.of(ids), 304, 3) is None
