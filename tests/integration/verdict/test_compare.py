"""Two GGUF files compared by the command itself, on a cluster of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.runs import RunFolder
from ray_jobs.stages import generate, judge
from ray_jobs.tables import read_rows
from tests.chaos.results import timeless

ROOT = Path(__file__).parents[3]
SETTINGS = (
    "data.num_prompts=6",
    "judge.feedback=false",
    "judge.prompt_order=rubric_first",
    "judge.context_tokens=2048",
    "judge.trust.num_pairs=3",
    "judge.trust.reference=chosen",
    "generation.max_answer_tokens=24",
    "generation.temperature=0.8",
    "generation.candidate_seed=1",
    "engine.settings.context_tokens=512",
    "engine.settings.deterministic=true",
    "verdict.num_resamples=500",
)
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


def compare(folder: Path, model: Path, *more: str, cache: str = "cache.sqlite") -> Done:
    """The model with itself under another seed."""
    line = [sys.executable, "-m", "ray_jobs.compare", str(model), str(model), "--name", "aa", "--judge"]
    line += ["run:base", "--prompts", "bundled:prompts", "--pairs", "bundled:pairs"]
    for change in (*SETTINGS, f"storage={folder}"):
        line += ["--set", change]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"PYTHONPATH": str(ROOT), "JUDGEMENT_CACHE": str(folder / cache)}
    return subprocess.run(
        [*line, *more], env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def compared(folder: Path, model_path: Path) -> Done:
    done = compare(folder, model_path)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def report_of(folder: Path) -> dict[str, object]:
    report = json.loads((folder / "aa/report/report.json").read_bytes())
    assert isinstance(report, dict)
    return report


def test_a_model_is_not_better_than_itself(folder: Path, compared: Done) -> None:
    report = report_of(folder)
    assert report["decision"] != "promote"
    assert report["num_prompts"] == report["num_scored_both"] == 6
    assert report["models"]["base"]["sha256"] == report["models"]["candidate"]["sha256"]  # type: ignore[index]
    assert "decision   inconclusive" in compared.stdout
    assert str(folder / "aa/report/report.html") in compared.stdout
    answers = [
        (folder / f"aa/answers/{name}/part-00000.parquet").read_bytes() for name in ("base", "candidate")
    ]
    assert answers[0] != answers[1], "another seed gives other answers"


@pytest.mark.usefixtures("compared")
def test_the_same_command_redoes_nothing(folder: Path, model_path: Path) -> None:
    before = (folder / "aa/report/report.json").read_bytes()
    again = compare(folder, model_path)
    assert again.returncode == 0
    assert again.stderr.count("done before, nothing to do") == 5
    assert (folder / "aa/report/report.json").read_bytes() == before


@pytest.mark.usefixtures("compared")
def test_a_verdict_redone_is_the_same_byte_by_byte(folder: Path, model_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "aa/report").iterdir()}
    assert compare(folder, model_path, "--force", "verdict").returncode == 0
    assert {path.name: path.read_bytes() for path in (folder / "aa/report").iterdir()} == before


@pytest.mark.long
@pytest.mark.usefixtures("compared")
def test_all_redone_in_other_blocks_and_batches_is_the_same_but_for_times(
    folder: Path, model_path: Path
) -> None:
    before = results_of(folder)
    changes = ("engine.rows_per_block=5", "engine.actors=1", "engine.settings.slots=7")
    sets = [part for change in changes for part in ("--set", change)]
    redone = compare(folder, model_path, "--force", "generate", *sets, cache="another.sqlite")
    assert redone.returncode == 0, redone.stderr[-4000:]
    assert results_of(folder) == before


def results_of(folder: Path) -> dict[str, object]:
    """Answers, judgements and report, without times and what a cache held."""
    run = RunFolder(folder / "aa")
    files = [*generate.answer_files(run), *judge.judgement_files(run)]
    found = {name: read_rows(run.path(name)) for name in files} | {"report": report_of(folder)}
    return dict(timeless(found))


@pytest.mark.usefixtures("compared")
def test_other_settings_under_the_same_name_are_refused(folder: Path, model_path: Path) -> None:
    refused = compare(folder, model_path, "--set", "generation.candidate_seed=2")
    assert refused.returncode == 2
    assert "stage 'generate' was made with other inputs: generation.candidate_seed" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_plan_reads_and_counts_all_inputs(folder: Path, model_path: Path) -> None:
    plan = compare(folder, model_path, "--check")
    assert plan.returncode == 0
    assert "prompts   6 of bundled:prompts" in plan.stdout
    assert "2 x 6 answers of up to 24 tokens" in plan.stdout
    assert "24 answers x RESPONSE_CORRECTNESS_5POINT by run:base; tested on 3 pairs" in plan.stdout
    refused = compare(folder, model_path, "--check", "--set", "judge.context_tokens=600")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: judge.context_tokens: 600 leave")
    assert "6 of 6 rows take more" in refused.stderr
