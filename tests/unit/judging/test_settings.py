"""The judge's section of a config."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.judging.settings import JudgeSettings


def parse(**fields: Any) -> JudgeSettings:
    return JudgeSettings.model_validate_json(json.dumps({"model": "m.gguf", **fields}))


def test_defaults() -> None:
    settings = parse()
    assert settings.metrics == ("RESPONSE_CORRECTNESS_5POINT",)
    assert settings.max_verdict_tokens == settings.max_feedback_tokens + 32
    assert parse(feedback=False).max_verdict_tokens == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": []}, "at least 1 item"),
        (
            {"metrics": ["RESPONSE_CORRECTNESS"]},
            "neither a .yaml file nor one of RESPONSE_CORRECTNESS_BINARY",
        ),
        ({"metrics": ["a.yaml", "a.yaml"]}, "the same metric stands twice"),
        ({"model": "m", "feedback": False, "backend": "hf"}, "feedback: false needs backend: engine or vllm"),
        ({"gpus": 1.5}, "gpus: a fraction of one, or a whole number"),
        ({"model": "run:base", "backend": "vllm"}, "model: run:base is a GGUF, which backend: vllm does"),
        ({"model": "j.gguf", "backend": "llamafile"}, "model: j.gguf is a GGUF"),
        ({"gpus": -1}, "greater than or equal to 0"),
        ({"adapter": "a.gguf", "backend": "openai"}, "adapter: needs backend: engine"),
        ({"max_feedback_tokens": 8192}, "max_feedback_tokens: must be below context_tokens"),
        ({"temprature": 1}, "Extra inputs are not permitted"),
        ({"inputs": {"query": "answer"}}, "Input should be 'conversation'"),
        ({"backend": "baseten"}, "Input should be 'engine'"),
        ({"trust": {"margin": 0.6}}, "less than 0.5"),
        ({"retries": -1}, "greater than or equal to 0"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        parse(**fields)
