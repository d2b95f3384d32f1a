"""The judge's prompts counted with its tokenizer, before any answer exists."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import serving.engine
from ray_jobs.errors import DataError
from ray_jobs.judging.counting import check_context
from ray_jobs.judging.settings import JudgeSettings

from .fakes import item, prompt


@pytest.fixture(autouse=True)
def words_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(_: Path):  # type: ignore[no-untyped-def]
        render = lambda messages: messages[0]["content"].split()  # noqa: E731
        yield SimpleNamespace(chat=SimpleNamespace(render=render))

    monkeypatch.setattr(serving.engine, "Tokenizer", SimpleNamespace(open=opened), raising=False)


def settings(context_tokens: int) -> JudgeSettings:
    return JudgeSettings(model="m", feedback=False, context_tokens=context_tokens)


def test_prompts_are_counted_with_a_whole_answer() -> None:
    rows = [prompt("short"), prompt("long", "Why " * 400)]
    check_context(settings(1500), Path("judge.gguf"), rows, [], 500)
    with pytest.raises(DataError, match=r"judge\.context_tokens: 1500.*1 of 2 rows.*: long$"):
        check_context(settings(1500), Path("judge.gguf"), rows, [], 700)


def test_known_pairs_are_counted_with_their_own_answers() -> None:
    known = [item("p/chosen"), item("p/rejected", "because " * 1000)]
    with pytest.raises(DataError, match=r"1 of 2 rows take more.*p/rejected$"):
        check_context(settings(1200), Path("judge.gguf"), [], known, 0)


def test_known_pairs_without_a_reference_are_counted_by_the_metrics_that_want_none(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "name: Own\ncriteria: c\nrubric: {0: bad, 1: good}\nrequired_inputs: [query]\n"
    )
    both = ("RESPONSE_CORRECTNESS_5POINT", str(tmp_path / "own.yaml"))
    mixed = settings(1200).model_copy(update={"metrics": both})
    bare = [
        replace(one, prompt=replace(one.prompt, reference=None))
        for one in (item("p/chosen"), item("p/rejected", "because " * 1000))
    ]
    check_context(mixed, Path("judge.gguf"), [], bare[:1], 0)
    with pytest.raises(DataError, match=r"metric Own; 1 of 2 rows take more.*p/rejected$"):
        check_context(mixed, Path("judge.gguf"), [], bare, 0)
