import json
import uuid
from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import StageFailed
from ray_jobs.runs import RunFolder, file_sha256, open_run
from ray_jobs.stages import promote
from ray_jobs.stages.base import run_stage
from serving.engine import EngineError
from serving.kept_models import model_here
from serving.registry import Registry
from serving.storage.mirror import discard
from serving.storage.remote import Remote

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


def put_inputs(folder: RunFolder, decision: str) -> None:
    """What the stage wants of those before it."""
    decide(folder, decision)
    for name in ("data/report.json", "tune/trials.parquet"):
        folder.write(name, b"{}")


def run_again(config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there was something to do."""
    monkeypatch.setattr(promote, "write_card", lambda config, folder: card(folder))
    return run_stage(promote.STAGE, config, folder)


def card(folder: RunFolder) -> str:
    folder.write("models/candidate/README.md", b"card")
    return "models/candidate/README.md"


@pytest.mark.parametrize("decision", ["promote", "keep_base"])
@pytest.mark.parametrize("gone", [".", "champion.json", "models"])
@pytest.mark.parametrize("place", ["here", "store"])
def test_a_registry_that_is_gone_is_filled_again(
    config: Config,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    decision: str,
    gone: str,
    place: str,
) -> None:
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "node"))
    uri = f"memory://registry-{uuid.uuid4().hex}/r"
    address = config.registry if place == "here" else uri
    config = config.model_copy(update={"registry": address})
    put_inputs(folder, decision)
    assert [run_again(config, folder, monkeypatch) for _ in range(2)] == [True, False]
    if place == "here":
        discard(Path(address) / gone)
    else:
        (Remote(uri) if gone == "." else Remote(uri) / gone).remove()
    assert [run_again(config, folder, monkeypatch) for _ in range(2)] == [True, False]
    champion = Registry.at(address).champion()
    assert champion is not None
    model = "candidate" if decision == "promote" else "base"
    assert champion.sha256 == folder.read_json(f"models/{model}/manifest.json")["sha256"]
    assert model_here(champion.model, champion.sha256).read_bytes() == f"weights of {model}".encode()


def test_a_champion_of_another_run_is_no_reason_to_promote_again(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_inputs(folder, "promote")
    assert run_again(config, folder, monkeypatch)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    Registry.at(config.registry).promote(other, sha256=file_sha256(other), run="other", report=tmp_path)
    assert not run_again(config, folder, monkeypatch)
    assert champion(config)["run"] == "other"


def test_a_registry_that_cannot_be_read_is_told(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_inputs(folder, "promote")
    assert run_again(config, folder, monkeypatch)
    (Path(config.registry) / "champion.json").write_bytes(b"{")
    with pytest.raises(StageFailed, match=r"promote: .*champion\.json"):
        run_again(config, folder, monkeypatch)


def test_a_flipped_byte_is_never_promoted(config: Config, folder: RunFolder) -> None:
    decide(folder, "promote")
    promote.run(config, folder)
    before = champion(config)
    folder.write("models/candidate/model.gguf", b"weights of candidatE")
    folder.write_json("models/candidate/manifest.json", {"sha256": "0" * 64})
    with pytest.raises(StageFailed, match="promote: "):
        promote.run(config, folder)
    assert champion(config) == before
