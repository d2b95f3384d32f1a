"""What a run leaves beside its results: data report, Modelfile, model card. Real stages, a tiny model."""

import json
import shutil
from pathlib import Path

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.search.trials import Trial
from ray_jobs.stages import export, prepare, promote
from ray_jobs.stages.trial_table import write_trials
from tests.integration.export.export_tiny_models import make_model
from tests.integration.export.family_table import trained

CARD = "models/candidate/README.md"
CONFIGS = Path(__file__).parents[2] / "configs"
REPORT = {
    "decision": "keep_base",
    "reason": "no gain",
    "mean_difference": 0.1,
    "ci95": [-0.2, 0.4],
    "num_scored_both": 24,
    "wins": 5,
    "ties": 15,
    "losses": 4,
    "judge_trust": {"trusted": False},
    "program_checks": None,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("run")
    model = make_model("smollm2", folder / "model")
    changes = [
        f"model.base={model}",
        f"storage={folder}/runs",
        f"registry={folder}/registry",
        "export.quantization=f16",
        "export.adapter=true",
        "judge.context_tokens=8192",  # the tiny tokenizer needs many tokens for the judge's rubric
    ]
    return load_config(CONFIGS / "smoke.yaml", changes)


@pytest.fixture(scope="module")
def folder(config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run brought to its end, with a short training and a made-up verdict in the place of the search."""
    run = open_run(config.storage, config.name)
    run_outputs = prepare.run(config, run)
    assert all(run.path(name).is_file() for name in run_outputs)
    _, adapter = trained(config.model.base, tmp_path_factory.mktemp("training"))
    shutil.copytree(adapter, run.path("tune/best"))
    best = Trial("trial-000", "done", {"beta": 0.25}, "there", 6, 1.0, None, 0.9, 0.5, 0.6, 0.1)
    write_trials(run.path("tune/trials.parquet"), [best])
    exported = export.run(config, run)
    assert all(run.path(name).is_file() for name in exported)
    run.write_json("report/report.json", REPORT)
    assert promote.run(config, run) == ["promoted.json", CARD]
    (expected,) = Path(config.registry).glob("models/*/expected.json")
    assert len(json.loads(expected.read_bytes())["answers"]) == 4
    return run


def test_the_data_report_counts_the_bases_own_tokens(config: Config, folder: RunFolder) -> None:
    report = folder.read_json("data/report.json")
    tokens = report["tokens"]
    assert tokens["rows_counted"]["prompts"] == config.data.num_prompts
    assert tokens["forecast"]["training"] > 0
    page = folder.path("data/report.md").read_text()
    assert f"| training | {tokens['forecast']['training']:,} |" in page
    assert f"| train | {report['splits']['train']['rows']} |" in page


def test_the_candidates_adapter_is_a_file_of_its_own_too(folder: RunFolder) -> None:
    assert folder.path("models/candidate/adapter.gguf").read_bytes()[:4] == b"GGUF"
    assert not folder.path("models/base/adapter.gguf").exists()


def test_both_models_have_a_modelfile(config: Config, folder: RunFolder) -> None:
    texts = {model: folder.path("models", model, "Modelfile").read_text() for model in ("base", "candidate")}
    assert texts["base"] == texts["candidate"]
    assert "FROM ./model.gguf\n" in texts["base"]
    assert f"PARAMETER num_ctx {config.engine.settings.context_tokens}\n" in texts["base"]


def test_the_card_tells_the_verdict_and_the_best_trial(folder: RunFolder) -> None:
    card = folder.path(CARD).read_text()
    manifest = folder.read_json("models/candidate/manifest.json")
    assert "**keep_base**: no gain" in card
    assert "| best trial: beta | 0.25 |" in card
    assert manifest["sha256"] in card
    assert ": not trusted |" in card


def test_a_second_try_makes_only_what_the_first_did_not(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(export, "write_model", lambda *given: made.append(given[3]))
    before = export.run(config, folder)
    assert made == []
    model = folder.path("models/candidate/model.gguf")
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert export.run(config, folder) == before
    assert made == ["candidate"]
    model.write_bytes(whole)
    modelfile = folder.path("models/base/Modelfile")
    text = modelfile.read_text()
    modelfile.unlink()
    export.run(config, folder)
    assert made == ["candidate", "base"]
    modelfile.write_text(text)


def test_the_unquantised_file_that_is_kept_is_published_too(folder: RunFolder) -> None:
    """A run's files that are not published are removed when the run is taken up from a store."""
    kept = folder.path("models/candidate/model-f16.gguf")
    assert f"models/candidate/{kept.name}" not in export.outputs_of(folder, "candidate")
    kept.write_bytes(b"GGUF")
    assert f"models/candidate/{kept.name}" in export.outputs_of(folder, "candidate")
    kept.unlink()
