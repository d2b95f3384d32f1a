import pytest
from scipy import stats

from ray_jobs.verdict.planning import (
    min_detectable_difference,
    power_plan,
    predicted_power,
    prompts_for_gain,
)
from ray_jobs.verdict.settings import VerdictSettings


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


def test_plan_uses_the_measured_spread():
    settings = VerdictSettings(wished_gain=0.5)
    assert power_plan(34, settings).num_prompts_for_wished_gain == 34
    plan = power_plan(34, settings, measured_sd=2.0)
    assert plan.sd == 2.0
    assert plan.num_prompts_for_wished_gain == 128
    assert plan.sentence() == (
        "34 prompts detect a score difference of 0.99 with 80 % power (sd 2); a gain of 0.5 takes 128 prompts"
    )


def test_too_few_prompts_are_said():
    assert "too few" in power_plan(1, VerdictSettings()).sentence()
