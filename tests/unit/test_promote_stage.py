import json
from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import StageFailed
from ray_jobs.runs import RunFolder, file_sha256, open_run
from ray_jobs.stages import promote
from serving.engine import EngineError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(CONFIGS / "smoke.yaml", [f"storage={tmp_path}/runs", f"registry={tmp_path}/registry"])


@pytest.fixture
def folder(config: Config) -> RunFolder:
    folder = open_run(config.storage, config.name)
    for model in ("base", "candidate"):
        path = folder.write(f"models/{model}/model.gguf", f"weights of {model}".encode())
        folder.write_json(f"models/{model}/manifest.json", {"sha256": file_sha256(path)})
    return folder


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trials for a card, no model that speaks: tests/integration/test_run_outputs.py has both."""
    monkeypatch.setattr(promote, "write_card", lambda config, folder: "the card")
    monkeypatch.setattr("serving.promote.first_words", lambda model: b"said")


def decide(folder: RunFolder, decision: str) -> None:
    folder.write_json("report/report.json", {"decision": decision})


def champion(config: Config) -> dict[str, str]:
    data = json.loads((Path(config.registry) / "champion.json").read_bytes())
    assert isinstance(data, dict)
    return data


def test_a_promoted_candidate_is_copied_whole_with_its_base(config: Config, folder: RunFolder) -> None:
    decide(folder, "promote")
    assert promote.run(config, folder) == ["promoted.json", "the card"]
    assert champion(config)["sha256"] == file_sha256(folder.path("models/candidate/model.gguf"))
    assert folder.read_json("promoted.json") == {"model": "candidate"}
    folder.path("models/candidate/model.gguf").write_bytes(b"changed later")
    model = Path(config.registry) / champion(config)["model"]
    assert model.read_bytes() == b"weights of candidate"
    assert model.with_name("expected.json").read_bytes() == b"said"


def test_a_model_that_says_nothing_is_not_promoted(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mute(model: Path) -> bytes:
        raise EngineError(f"{model}: the model does not answer")

    monkeypatch.setattr("serving.promote.first_words", mute)
    decide(folder, "promote")
    with pytest.raises(StageFailed, match=r"promote: .*does not answer"):
        promote.run(config, folder)
    assert not (Path(config.registry) / "champion.json").exists()


@pytest.mark.parametrize("decision", ["keep_base", "inconclusive"])
def test_without_a_winner_only_an_empty_registry_takes_the_base(
    config: Config, folder: RunFolder, decision: str
) -> None:
    decide(folder, decision)
    promote.run(config, folder)
    assert champion(config)["sha256"] == file_sha256(folder.path("models/base/model.gguf"))
    decide(folder, "promote")
    promote.run(config, folder)
    decide(folder, decision)
    promote.run(config, folder)
    assert champion(config)["sha256"] == file_sha256(folder.path("models/candidate/model.gguf"))


def test_a_flipped_byte_is_never_promoted(config: Config, folder: RunFolder) -> None:
    decide(folder, "promote")
    promote.run(config, folder)
    before = champion(config)
    folder.write("models/candidate/model.gguf", b"weights of candidatE")
    folder.write_json("models/candidate/manifest.json", {"sha256": "0" * 64})
    with pytest.raises(StageFailed, match="promote: "):
        promote.run(config, folder)
    assert champion(config) == before
