"""flow-judge's own transformers backend, with a real model (small and random) from a hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.export.export_tiny_models import make_model

ROOT = Path(__file__).parents[3]
REVISION = "0123456789" * 4
JUDGE = """
import json
from dataclasses import asdict
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_remote
from ray_jobs.judging.settings import JudgeSettings
from tests.unit.judging.fakes import item

settings = JudgeSettings(model="me/tiny", backend="hf", max_feedback_tokens=16, retries=0)
judge = Judge(open_remote(settings), settings, "RESPONSE_CORRECTNESS_5POINT")
print(json.dumps([asdict(one) for one in judge.judge([item("a"), item("b")])]))
"""


def test_transformers_judges_and_makes_no_score_up(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    cache = tmp_path / "hub/models--me--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(REVISION)
    (cache / "snapshots").mkdir()
    make_model("smollm2", tmp_path / "model").rename(cache / "snapshots" / REVISION)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", JUDGE]
    done = subprocess.run(
        line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    judged = json.loads(done.stdout.splitlines()[-1])
    assert [one["id"] for one in judged] == ["a", "b"]
    for one in judged:
        assert (one["score"], one["expected_score"], one["failure"]) == (None, None, "no_score")
