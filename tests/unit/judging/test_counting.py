"""The judge's prompts counted with its tokenizer, before any answer exists."""

from contextlib import contextmanager
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
