"""Where judges come from."""

import pytest

from ray_jobs.errors import ConfigError
from ray_jobs.judging.flow_models import FlowJudgeBackend
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_remote
from ray_jobs.judging.settings import JudgeSettings

from .fakes import item, verdict


def settings(model: str, **fields: object) -> JudgeSettings:
    return JudgeSettings(model=model, **fields)  # type: ignore[arg-type]


def test_openai_without_a_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(
        ConfigError, match=r"judge\.openai\.api_key_env: the environment variable JUDGE_KEY is not set"
    ):
        open_remote(JudgeSettings.model_validate_json(
            '{"model": "gpt", "backend": "openai", "openai": {"api_key_env": "JUDGE_KEY"}}'
        ))  # fmt: skip


def test_flow_judges_own_models_are_read_as_strictly() -> None:
    from flow_judge.models.common import BaseFlowJudgeModel

    class Talker(BaseFlowJudgeModel):
        def _generate(self, prompt: str) -> str:
            raise AssertionError(prompt)

        def _batch_generate(self, prompts: list[str], use_tqdm: bool = True, **kwargs: object) -> list[str]:
            assert not use_tqdm
            return [
                verdict(4) if "right" in prompt.split("<output>")[1] else verdict(9) for prompt in prompts
            ]

    chosen = settings("flowaicom/Flow-Judge-v0.1", backend="hf")
    backend = FlowJudgeBackend(Talker("m", "t", {}), "hf:m")
    items = [item("a", "right"), item("b", "wrong")]
    judged = Judge(backend, chosen, "RESPONSE_CORRECTNESS_5POINT").judge(items)
    assert [(one.score, one.expected_score) for one in judged] == [(4, None), (None, None)]
    assert judged[1].failure == "off_scale"
