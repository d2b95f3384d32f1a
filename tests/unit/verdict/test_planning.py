"""How many prompts a verdict takes, in the report and in the plan."""

import re
from pathlib import Path

import pytest
from scipy import stats

from ray_jobs.config import Config, load_config
from ray_jobs.plan import judging_line, power_line
from ray_jobs.verdict.planning import min_detectable_difference, predicted_power, prompts_for_gain

CONFIGS = Path(__file__).parents[3] / "configs"
TWO = "judge.metrics=[RESPONSE_CORRECTNESS_5POINT, RESPONSE_CORRECTNESS_BINARY]"


def test_textbook_sample_size():
    # (1.96 + 0.8416)^2 / 0.5^2 = 31.4, and two or three more for t: 34, as power tables have it
    assert prompts_for_gain(0.5, 1.0, 0.95, 0.8) == 34


def test_large_samples_follow_the_normal_formula():
    quantiles = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    assert min_detectable_difference(10_000, 2.0, 0.95, 0.8) == pytest.approx(quantiles * 2 / 100, rel=1e-3)


def test_gain_and_prompts_are_inverse():
    gain = min_detectable_difference(150, 1.3, 0.9, 0.7)
    assert prompts_for_gain(gain * 1.0001, 1.3, 0.9, 0.7) == 150
    assert predicted_power(gain, 1.3, 150, 0.9) == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize(("num_prompts", "sd"), [(0, 1.0), (1, 1.0), (50, 0.0)])
def test_nothing_to_detect_with(num_prompts, sd):
    assert min_detectable_difference(num_prompts, sd, 0.95, 0.8) is None


def config_with(*changes: str) -> Config:
    return load_config(CONFIGS / "smoke.yaml", changes)


@pytest.mark.parametrize(("changes", "tests"), [((), 1), (("verdict.num_candidates=3",), 3), ((TWO,), 2)])
def test_the_plan_before_a_run_says_what_the_report_will(changes, tests):
    """It does without the t distribution, so that it is there at once."""
    line = power_line(config_with("verdict.wished_gain=0.2", *changes), 100)
    shown, needed = re.fullmatch(
        r"100 prompts show a score difference of about ([\d.]+) with 80% power, .*"
        r"deviation of 1; a gain of 0.2 takes about (\d+) prompts",
        line,
    ).groups()
    level = 1 - 0.05 / tests
    assert float(shown) == pytest.approx(min_detectable_difference(100, 1.0, level, 0.8), rel=0.03)
    assert int(needed) == pytest.approx(prompts_for_gain(0.2, 1.0, level, 0.8), rel=0.03)


def test_too_few_prompts_are_said():
    assert "too few" in power_line(config_with(), 1)


def test_the_plan_counts_what_is_judged_again():
    config = config_with("judge.trust.num_repeats=20")
    assert judging_line(config, 100, 2, 30).startswith("300 answers x ")
    assert judging_line(config, 100, 2, 5).startswith("220 answers x ")
