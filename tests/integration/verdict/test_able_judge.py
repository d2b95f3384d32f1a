"""The embedded default's run under a judge that can judge.

Such a judge is a file of a gigabyte that is no part of the project: JUDGE_GGUF names it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETTINGS = (
    "name=able",
    "search.num_trials=1",
    "judge.adapter=null",
    "verdict.when_untrusted=inconclusive",  # nobody but the judge can promote
)

pytestmark = [
    pytest.mark.skipif("JUDGE_GGUF" not in os.environ, reason="JUDGE_GGUF names no judge that can judge"),
    pytest.mark.timeout(3700),
]


def test_the_judge_is_trusted_and_of_one_mind_with_the_programs(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "ray_jobs.pipeline", str(ROOT / "configs/local.yaml")]
    for change in (
        *SETTINGS,
        f"judge.model={os.environ['JUDGE_GGUF']}",
        f"storage={tmp_path}",
        f"registry={tmp_path}/r",
    ):
        line += ["--set", change]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"PYTHONPATH": str(ROOT), "JUDGEMENT_CACHE": str(tmp_path / "cache.sqlite")}
    done = subprocess.run(
        line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "able/report/report.json").read_bytes())
    assert report["judge_trust"]["trusted"]
    assert report["decision"] == decision_by_checks(report["program_checks"]["overall"]), report["reason"]
    assert report["clause"] in ("gain", "worse", "min_gain", "evidence")


def decision_by_checks(overall: dict[str, list[float]]) -> str:
    """What program-checked accuracy says by itself."""
    low, high = overall["ci95"]
    return "promote" if low > 0 else "keep_base" if high < 0 else "inconclusive"
