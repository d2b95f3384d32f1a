import numpy as np
import pytest
import statsmodels.api as sm

from ray_jobs.verdict.length import length_adjusted, slope


def rows(quality, per_squashed, n=400, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.normal(80.0, 100.0, n)
    differences = quality + per_squashed * np.tanh(lengths / lengths.std()) + rng.normal(0, 0.3, n)
    return differences, lengths


def test_recovers_the_quality_under_a_length_bias():
    differences, lengths = rows(quality=0.2, per_squashed=0.8)
    found = length_adjusted(differences, lengths, level=0.95)
    assert differences.mean() > 0.45
    assert found.value == pytest.approx(0.2, abs=0.06)
    assert found.interval.low < 0.2 < found.interval.high


def test_pure_length_bias_leaves_nothing_at_equal_length():
    differences, lengths = rows(quality=0.0, per_squashed=0.8)
    found = length_adjusted(differences, lengths, level=0.95)
    assert found.interval.low < 0 < found.interval.high


def test_is_the_intercept_of_least_squares_with_hc3_errors():
    differences, lengths = rows(quality=0.1, per_squashed=0.3, n=30)
    design = sm.add_constant(np.tanh(lengths / np.std(lengths)))
    reference = sm.OLS(differences, design).fit(cov_type="HC3", use_t=True)
    found = length_adjusted(differences, lengths, level=0.9)
    assert found.value == pytest.approx(reference.params[0], rel=1e-9)
    assert found.interval.ends == pytest.approx(tuple(reference.conf_int(0.1)[0]), rel=1e-9)
    assert found.p_value == pytest.approx(reference.pvalues[0], rel=1e-9)


def test_swapping_the_models_mirrors_the_adjusted_difference():
    differences, lengths = rows(quality=0.1, per_squashed=0.3, n=30)
    one = length_adjusted(differences, lengths, level=0.95)
    other = length_adjusted(-differences, -lengths, level=0.95)
    assert other.value == pytest.approx(-one.value, abs=1e-12)
    assert other.interval.ends == pytest.approx(one.interval.mirrored().ends, abs=1e-12)


def test_equal_lengths_leave_the_plain_mean():
    differences = np.array([0.0, 1.0, 2.0, 1.0])
    assert length_adjusted(differences, np.zeros(4), level=0.95).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("differences", "lengths", "note"),
    [
        ([1.0, 0.0, 1.0, 0.0], [5.0, 5.0, 5.0, 5.0], "cannot be told from quality"),
        ([1.0, 0.0, 1.0], [5.0, 6.0, 7.0], "at least 4 rows"),
        ([1.0, 0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 9.0], "a single row"),
    ],
)
def test_what_cannot_be_adjusted_is_null_and_says_why(differences, lengths, note):
    found = length_adjusted(np.array(differences), np.array(lengths), level=0.95)
    assert found.value is None
    assert found.interval.ends is None
    assert note in found.interval.note


def test_slope_per_hundred_characters():
    lengths = np.array([0.0, 100.0, 200.0, 300.0, 400.0])
    noise = np.array([0.01, -0.01, 0.0, 0.01, -0.01])
    found = slope(1.0 + 0.005 * lengths + noise, lengths, level=0.95)
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert found.interval.low < 0.5 < found.interval.high


def test_slope_of_equal_lengths_is_null():
    assert slope(np.arange(5.0), np.ones(5), level=0.95).interval.note == "all lengths are equal"
