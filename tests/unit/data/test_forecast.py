"""The data report: lengths in tokens, what does not fit, and the tokens of each stage."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ray_jobs.config import Config, load_config
from ray_jobs.data.forecast import forecast, load_tokenizer, report_markdown, token_report
from ray_jobs.data.split import split
from ray_jobs.plan import plan_lines
from ray_jobs.records import Message, Pair, Prompt

CONFIG = Path(__file__).parents[3] / "configs" / "smoke.yaml"


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    """One token a word, known or not."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    assert found is not None
    return found


def words_of(number: int) -> str:
    return " ".join(["word"] * number)


@pytest.fixture
def config() -> Config:
    return load_config(CONFIG, ["training.max_pair_tokens=100"])


def test_lengths_and_what_does_not_fit(words: Tokenizer, config: Config) -> None:
    turn = (Message("user", words_of(10)),)
    pairs = [Pair(str(n), "", turn, words_of(size), words_of(5)) for n, size in enumerate((20, 30, 91, 90))]
    room = config.engine.settings.context_tokens - config.generation.max_answer_tokens
    prompts = [Prompt("a", "", turn), Prompt("b", "", (Message("user", words_of(room + 1)),))]
    found = token_report(config, pairs, prompts, words)
    assert found["lengths"]["chosen"] == {"p50": 30, "p95": 91, "max": 91}
    assert found["share_of_pairs_too_long"] == 0.25  # 10 + 91 words are above 100
    assert found["share_of_prompts_too_long"] == 0.5
    # 2 trials of 4 steps of 4 pairs; a pair that fits has 10 + 5 and 20, 30 or 90 tokens
    assert found["forecast"]["training"] == round(2 * 4 * 4 * (35 + 45 + 105) / 3)


def test_the_forecast_follows_the_config(config: Config) -> None:
    found = forecast(config, 100, 50)
    assert found["training"] == 2 * 4 * 4 * 100
    assert found["generation, prompts"] == 2 * 24 * 50
    assert found["generation, answers"] == 2 * 24 * 32
    more = forecast(
        config.model_copy(update={"data": config.data.model_copy(update={"num_prompts": 48})}), 1, 1
    )
    assert more["generation, answers"] == 2 * found["generation, answers"]


def test_the_forecast_is_of_the_most_that_the_plan_says() -> None:
    changes = [
        "verdict.num_candidates=2",
        "search={num_trials: 7, space: {num_steps: {choice: [3, 40]}, pairs_per_step: {grid: [2, 8, 4]}}}",
        "judge.trust={num_pairs: 6, num_repeats: 4}",
    ]
    config = load_config(CONFIG, changes)
    found = forecast(config, 10, 50)
    assert found["training"] == 6 * 40 * 8 * 10
    assert found["generation, prompts"] == 3 * 24 * 50
    judge = config.judge
    judged = 3 * 24 + 2 * 6 + 2 * 4
    assert found["judging, feedback"] == judged * (judge.max_feedback_tokens if judge.feedback else 1)
    lines = plan_lines(config)
    assert f"judge     {judged} answers x " in "\n".join(lines)
    assert "training  up to 40 steps of 8 pairs (320 in all) a trial, " in "\n".join(lines)


def test_a_folder_without_a_fast_tokenizer_is_not_counted(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


def test_the_page_says_what_the_json_says(words: Tokenizer, config: Config) -> None:
    splits = split(config.data, 0)
    report = splits.report | {"tokens": token_report(config, splits.train, splits.prompts, words)}
    report["preferences"]["repeated_ids"] = 3
    page = report_markdown(json.loads(json.dumps(report)))
    assert f"`bundled:pairs`: {report['preferences']['rows_in']} rows" in page
    assert page.count("rows have an `id` that an earlier one has: they go by a hash of their content.") == 1
    for stage, tokens in report["tokens"]["forecast"].items():
        assert f"| {stage} | {tokens:,} |" in page
    near = report["near_overlap"]["found"]
    assert f"At least 80% similar to a pair's prompt: {near}." in page
    assert "Counted on" not in report_markdown(splits.report)
