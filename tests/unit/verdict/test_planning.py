"""How many prompts a verdict takes, in the report and in the plan."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError
from ray_jobs.plan import judging_line, power_line
from ray_jobs.verdict.planning import (
    detectable_gain,
    fewest_rows,
    min_detectable_difference,
    predicted_power,
    prompts_for_gain,
    prompts_for_wished_gain,
)
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.statistics import compare

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


MIN_GAIN = VerdictSettings(min_gain=0.5, wished_gain=0.6)


def paired(differences, clusters=None):
    return compare(np.asarray(differences), level=0.95, num_resamples=200, seed=0, clusters_B=clusters)


def test_gains_count_from_the_minimal_one():
    """Of the wished gain of 0.6 only 0.1 has to be seen."""
    rows = paired(np.random.default_rng(0).normal(0.6, 0.73, 60))
    assert detectable_gain(MIN_GAIN, rows, 0.95) == pytest.approx(
        0.5 + min_detectable_difference(60, rows.sd, 0.95, 0.8)
    )
    assert prompts_for_wished_gain(MIN_GAIN, rows, 0.95) == prompts_for_gain(0.1, rows.sd, 0.95, 0.8)


def test_copies_of_rows_show_no_more_than_the_rows():
    values = np.random.default_rng(1).normal(0.3, 1.0, 12)
    alone, copied = paired(values), paired(np.repeat(values, 20), np.repeat(np.arange(12), 20))
    assert detectable_gain(MIN_GAIN, copied, 0.95) == pytest.approx(detectable_gain(MIN_GAIN, alone, 0.95))
    wished = [prompts_for_wished_gain(MIN_GAIN, rows, 0.95) for rows in (alone, copied)]
    assert wished[1] == 20 * wished[0]
    one = paired(values, np.zeros(12, dtype=np.int64))
    assert detectable_gain(MIN_GAIN, one, 0.95) is None


def test_the_planned_power_is_met_above_a_minimal_gain_and_with_clusters():
    """Ten clusters that share half of the variance; t intervals of their means, 4,000 evaluations."""
    rng = np.random.default_rng(2)
    spread = np.sqrt(0.5 + 0.5 / 20)
    gain = MIN_GAIN.min_gain + min_detectable_difference(10, spread, 0.95, 0.8)
    means = gain + np.sqrt(0.5) * rng.normal(size=(4000, 10))
    means += np.sqrt(0.5) * rng.normal(size=(4000, 10, 20)).mean(axis=2)
    low = means.mean(axis=1) - stats.t.ppf(0.975, 9) * stats.sem(means, axis=1)
    assert np.mean(low > MIN_GAIN.min_gain) == pytest.approx(0.8, abs=0.02)


def test_a_wish_below_the_minimal_gain_is_refused():
    with pytest.raises(ConfigError, match=r"verdict: wished_gain: must be above min_gain, which is 0\.5"):
        config_with("verdict.min_gain=0.5", "verdict.wished_gain=0.5")


def test_the_plan_counts_from_the_minimal_gain_and_names_clusters():
    line = power_line(config_with("verdict.min_gain=0.5", "verdict.wished_gain=0.6"), 100)
    assert "difference of about 0.78" in line
    assert "a gain of 0.6 takes about 785 prompts" in line
    assert "cluster" not in line
    assert "every cluster has one prompt" in power_line(config_with("verdict.cluster_by=source"), 100)


def test_too_few_independent_rows_detect_nothing() -> None:
    """Of n rows the sign-flip test's least p-value is 2 / 2**n."""
    assert [fewest_rows(level) for level in (0.5, 0.9, 0.95, 0.99)] == [2, 5, 6, 8]
    rows = np.array([0.5, 0.6, 0.4, 0.55, 0.5])
    few = compare(rows, level=0.95, num_resamples=1000, seed=0)
    enough = compare(np.append(rows, 0.45), level=0.95, num_resamples=1000, seed=0)
    assert detectable_gain(VerdictSettings(), few, 0.95) is None
    assert detectable_gain(VerdictSettings(), enough, 0.95) is not None
    wished = VerdictSettings(wished_gain=0.5)
    assert prompts_for_wished_gain(wished, few, 0.95) == 6
