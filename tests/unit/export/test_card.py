"""The model card says what the run's files say; a push uploads exactly the model's files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ray_jobs.config import load_config
from ray_jobs.errors import ModelError
from ray_jobs.export.card import licence_note, model_card
from ray_jobs.export.push import FILES, push

CONFIGS = Path(__file__).parents[3] / "configs"
REPORT: dict[str, Any] = {
    "decision": "promote",
    "reason": "better by judge and by checks",
    "mean_difference": 0.25,
    "ci95": [0.1, 0.4],
    "num_scored_both": 990,
    "wins": 300,
    "ties": 500,
    "losses": 190,
    "judge_trust": {"trusted": True},
    "program_checks": {"overall": {"base": 0.5, "candidate": 0.625, "n": 80}},
}
PARITY = {"identical": 127, "tokens": 128, "near_ties": 1, "max_relative_logit_error": 0.0123}
MANIFEST = {
    "sha256": "abc",
    "bytes": 7.5e8,
    "recipe": {"quantization": "q4_0"},
    "base": {"revision": "9213176"},
    "parity": PARITY,
}
DATA = {
    "preferences": {"source": "mlabonne/orpo-dpo-mix-40k", "revision": None, "rows_used": 9, "rows_in": 10},
    "prompts": {"source": "p.jsonl", "revision": None, "rows_used": 5, "rows_in": 5},
    "splits": {"train": {"rows": 7}, "heldout": {"rows": 2}},
}


def test_the_card_tells_data_settings_verdict_and_licence() -> None:
    config = load_config(CONFIGS / "llama-3.2-1b.yaml")
    card = model_card(config, REPORT, MANIFEST, DATA, {"beta": 0.2})
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["orpo", "preference-tuning", "gguf"],
        "base_model": "meta-llama/Llama-3.2-1B-Instruct",
        "datasets": ["mlabonne/orpo-dpo-mix-40k"],
    }
    for text in (
        "`meta-llama/Llama-3.2-1B-Instruct` at `9213176`, preference-tuned",
        "**promote**: better by judge and by checks",
        "+0.250 (+0.100 to +0.400)",
        "| wins, ties, losses | 300, 500, 190 |",
        "50.0% to 62.5% of 80",
        f"| judge | `{config.judge.model}`, by {', '.join(config.judge.metrics)}: trusted |",
        "9 of 10 rows usable",
        "| best trial: beta | 0.2 |",
        "127 of 128 greedy tokens equal",
        "Built with Llama",
    ):
        assert text in body


def test_a_bundled_base_names_nothing_that_a_hub_cannot_resolve() -> None:
    config = load_config(CONFIGS / "smoke.yaml")
    card = model_card(config, REPORT | {"mean_difference": None, "program_checks": None}, MANIFEST, DATA, {})
    assert "base_model" not in card
    assert "datasets" not in card.split("---")[1]
    assert "SmolLM2 is under Apache-2.0" in card


def test_an_unknown_base_is_not_given_a_licence() -> None:
    assert licence_note("someone/model") == (
        "The licence of the base applies: see where `someone/model` comes from."
    )


class Hub:
    """Stands in for the hub's client; notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, options))

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append(("upload", options))
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_a_push_uploads_the_models_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    with pytest.raises(ModelError, match=r"README\.md is missing; finish the run first"):
        push(tmp_path, "me/model", private=True)
    for name in (*FILES, "model-f16.gguf", "secret.txt"):
        (tmp_path / name).write_text("x")
    assert push(tmp_path, "me/model", private=True) == "https://hub/commit/1"
    (repo, made), (_, uploaded) = hub.calls
    assert (repo, made) == ("me/model", {"private": True, "exist_ok": True})
    assert uploaded["allow_patterns"] == list(FILES)
    assert uploaded["folder_path"] == tmp_path


def test_a_refused_push_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Hub, repo_id: str, **_: Any) -> None:
        raise OSError("cannot reach\nthe hub")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    for name in FILES:
        (tmp_path / name).write_text("x")
    with pytest.raises(ModelError, match=r"me/model: cannot be pushed to: cannot reach the hub"):
        push(tmp_path, "me/model", private=False)
