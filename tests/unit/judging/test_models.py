"""Where judges come from."""

import sys
from pathlib import Path

import pytest

from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.judging.models import file_sha256, judge_model_path, open_remote
from ray_jobs.judging.settings import JudgeSettings


def settings(model: str, **fields: object) -> JudgeSettings:
    return JudgeSettings(model=model, **fields)  # type: ignore[arg-type]


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "judge.gguf"
    path.write_bytes(b"abc")
    assert judge_model_path(settings(str(path))) == path
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent.gguf", r"judge\.model: absent\.gguf: no such file"),
        ("owner/repo:file.bin", "no such file"),
        ("bundled:GPT", "bundled:GPT is not one of SmolLM2-135M-Instruct"),
    ],
)
def test_what_is_nowhere_is_named(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        judge_model_path(settings(model))


def test_hub_model_is_fetched_at_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[tuple[str, str, str | None]] = []

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = judge_model_path(
        settings("flowaicom/Flow-Judge-v0.1-GGUF:flow-judge-v0.1-Q4_K_M.gguf", revision="abc")
    )
    assert found == tmp_path / "flow-judge-v0.1-Q4_K_M.gguf"
    assert asked == [("flowaicom/Flow-Judge-v0.1-GGUF", "flow-judge-v0.1-Q4_K_M.gguf", "abc")]


def test_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ModelError, match=r"o/r:f\.gguf cannot be fetched from the hub: no route to host"):
        judge_model_path(settings("o/r:f.gguf"))


def test_vllm_names_its_extra() -> None:
    if "vllm" in sys.modules:
        pytest.skip("vllm is here")
    with pytest.raises(
        ConfigError, match=r"judge\.backend: vllm cannot be used here \(pip install 'flow-judge\[vllm\]'\)"
    ):
        open_remote(settings("flowaicom/Flow-Judge-v0.1", backend="vllm"))


def test_openai_without_a_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(
        ConfigError, match=r"judge\.openai\.api_key_env: the environment variable JUDGE_KEY is not set"
    ):
        open_remote(JudgeSettings.model_validate_json(
            '{"model": "gpt", "backend": "openai", "openai": {"api_key_env": "JUDGE_KEY"}}'
        ))  # fmt: skip
