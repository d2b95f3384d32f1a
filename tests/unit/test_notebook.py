"""The notebook of a run's result runs on the files that a run leaves."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest

from ray_jobs.records import Answer, Judgement, Message, Prompt, as_row
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial
from ray_jobs.stages.trial_table import write_trials
from ray_jobs.tables import PROMPT_COLUMNS, write_rows

NOTEBOOK = Path(__file__).parents[2] / "docs" / "result.ipynb"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = RunFolder(tmp_path / "run")
    report = {"decision": "promote", "reason": "better", "ci95": [0.2, 0.8]}
    folder.write_json("report/report.json", report)
    curve = [{"step": float(step), "heldout_nll": 2.0 - step / 10} for step in (3, 6)]
    trials = [
        Trial(f"trial-{n}", "done", {"beta": n / 10}, "there", 6, 1.0, None, 0.5, 1.0 + n, 1.0, 0.1, curve)
        for n in range(2)
    ]
    write_trials(folder.path("tune/trials.parquet"), trials)
    prompts = [Prompt(f"p{n}", "test", (Message("user", f"Question {n}?"),)) for n in range(8)]
    write_rows(folder.path("data/prompts.parquet"), [as_row(one) for one in prompts], PROMPT_COLUMNS)
    for model, mean in (("base", 3.0), ("candidate", 3.5)):
        answers = [Answer(f"p{n}", "test", "", "", f"{model} {n}", 5, 0, 9, "stop", 0.1) for n in range(8)]
        expected = [None if n == 7 else mean + n % 2 for n in range(8)]
        judged = [Judgement(f"p{n}", "m", 4, expected[n], None, None, "", "", 0.1) for n in range(8)]
        part = f"{model}/part-00000.parquet"
        write_rows(folder.path(f"answers/{part}"), [as_row(one) for one in answers], Answer.COLUMNS)
        write_rows(folder.path(f"judgements/{part}"), [as_row(one) for one in judged], Judgement.COLUMNS)
    return folder.root


def test_every_cell_runs_and_says_what_the_files_hold(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORPO_RUN", str(run))
    mpl.use("Agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    out = capsys.readouterr().out
    assert "promote: better" in out
    assert "mean +0.438 on 8 prompts" in out  # 7 prompts gain 0.5, one has the sampled score 4 for both
    assert list(names["table"].columns) == ["base", "candidate", "difference", "prompt"]  # type: ignore[attr-defined]
