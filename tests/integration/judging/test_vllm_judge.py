"""vLLM as the judge, with the bundled model; skipped where vllm is not installed (docs/verdict.md)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.export.base import default_cache_dir, resolve_base
from ray_jobs.export.settings import ModelSettings
from ray_jobs.judging.engine_judge import EngineJudge
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_remote
from ray_jobs.judging.settings import JudgeSettings
from serving.engine.tokenizer import Tokenizer
from serving.engine.types import Request, Sampling
from tests.unit.judging.fakes import item

pytest.importorskip("vllm")
METRIC = "RESPONSE_CORRECTNESS_5POINT"


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_base(ModelSettings(base="bundled:smollm2-135m-instruct"), default_cache_dir()).hf_dir


@pytest.fixture(scope="module")
def settings(folder: Path) -> JudgeSettings:
    return JudgeSettings(model=str(folder), backend="vllm", context_tokens=2048, max_feedback_tokens=48,
                         long_feedback="score", cache=False)  # fmt: skip


@pytest.fixture(scope="module")
def backend(settings: JudgeSettings) -> Iterator[EngineJudge]:
    opened = open_remote(settings)
    assert isinstance(opened, EngineJudge)
    return opened


def test_every_answer_has_a_score_and_an_expected_one(backend: EngineJudge, settings: JudgeSettings) -> None:
    items = [item(f"row {number}", f"Because of {number}.") for number in range(12)]
    judged = Judge(backend, settings, METRIC).judge(items)
    assert [one.id for one in judged] == [one.id for one in items]
    for one in judged:
        assert one.failure is None
        assert one.score in (1, 2, 3, 4, 5)
        assert one.expected_score is not None
        assert 1 < one.expected_score < 5
        assert one.feedback


def test_a_score_without_feedback_is_the_same_alone_and_in_company(
    backend: EngineJudge, settings: JudgeSettings
) -> None:
    at_once = settings.model_copy(update={"feedback": False, "temperature": 0.0})
    judge = Judge(EngineJudge(backend._engine, at_once, sha256=backend.sha256), at_once, METRIC)
    items = [item(f"row {number}", f"Because of {number}.") for number in range(6)]
    together = judge.judge(items)
    for one, alone in zip(together, [judge.judge([single])[0] for single in items], strict=True):
        assert one.expected_score == pytest.approx(alone.expected_score, abs=0.05)


def test_the_prompt_has_the_tokens_that_the_engines_own_has(backend: EngineJudge) -> None:
    from ray_jobs.export.base import resolve_gguf

    gguf = resolve_gguf("bundled:smollm2-135m-instruct", None, default_cache_dir())
    message = {"role": "user", "content": "Say <|im_end|> twice."}
    with Tokenizer.open(gguf) as tokenizer:
        assert backend._engine.chat.render([message]) == tokenizer.chat.render([message])


def test_what_cannot_be_done_ends_with_a_reason(backend: EngineJudge) -> None:
    engine = backend._engine
    prompt = tuple(engine.chat.render([{"role": "user", "content": "Count to a thousand."}]))
    refused = engine.submit(Request("a", prompt * 200, Sampling(max_tokens=8))).result()
    assert refused.finish_reason == "error"
    assert refused.error
    late = engine.submit(Request("b", prompt, Sampling(max_tokens=1000), deadline_s=0.05)).result()
    assert late.finish_reason == "timeout"
    assert engine.submit(Request("c", prompt, Sampling(max_tokens=4))).result().num_answer_tokens == 4


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    code = f"""
from ray_jobs.errors import ModelError
from ray_jobs.judging.models import open_remote
from ray_jobs.judging.settings import JudgeSettings
import json
try:
    open_remote(JudgeSettings(model={str(tmp_path)!r}, backend="vllm"))
except ModelError as error:
    print(json.dumps(str(error)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"judge.model: vLLM cannot open {tmp_path}: " in json.loads(done.stdout.splitlines()[-1])
