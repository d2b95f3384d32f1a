import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from ray_jobs.verdict.statistics import (
    MAX_RESAMPLED_ROWS,
    cluster_sums,
    compare,
    expanded_level,
    holm,
    mean_interval,
    sign_flip_p,
    worst_cases,
)

SCORES = arrays(np.float64, st.integers(2, 40), elements=st.integers(-8, 8).map(lambda n: n / 2))


def run(differences, **fields):
    return compare(
        np.asarray(differences, float), **({"level": 0.95, "num_resamples": 999, "seed": 3} | fields)
    )


def test_hand_computed_figures():
    result = run([2.0, 1.0, 0.0, -1.0, 3.0, 1.0])
    assert result.mean_difference == pytest.approx(1.0)
    assert result.sd == pytest.approx(math.sqrt(2.0))
    assert (result.wins, result.ties, result.losses) == (4, 1, 1)


def test_exact_p_value_counts_all_sign_flips():
    # Of the 32 signings of 2, 1, 1, 3, 1 only those with sum at least 6 in size count: sums 8 (1), 6 (3)
    # on either side, so p = 2 * 4 / 32. The observed sum is 2 + 1 - 1 + 3 + 1 = 6.
    p_value, exact = sign_flip_p(np.array([2.0, 1.0, -1.0, 3.0, 1.0, 0.0]), num_resamples=999, seed=0)
    assert exact
    assert p_value == pytest.approx(8 / 32)


def test_sampled_p_value_is_near_the_t_test():
    differences = np.random.default_rng(5).normal(0.2, 1.0, 120)
    p_value, exact = sign_flip_p(differences, num_resamples=20_000, seed=0)
    assert not exact
    assert p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)


def test_thousands_of_rows_are_sampled():
    differences = np.random.default_rng(5).normal(0.05, 1.0, 3000)
    p_value, exact = sign_flip_p(differences, num_resamples=500, seed=0)
    assert not exact
    assert p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)


def test_bca_interval_is_scipys_at_the_expanded_level():
    differences = np.sort(np.random.default_rng(6).exponential(1.0, 60) - 0.2)
    mine = mean_interval(differences, level=0.9, num_resamples=2000, seed=11)
    reference = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=expanded_level(0.9, 60),
        n_resamples=2000,
        method="BCa",
        rng=np.random.default_rng(11),
    ).confidence_interval
    assert (mine.method, mine.level) == ("bca", 0.9)
    assert mine.ends == pytest.approx(tuple(reference), abs=1e-12)


def test_expanded_level_by_hand():
    # 5 rows: t(0.975, 4) = 2.776, times sqrt(5 / 4) = 3.104; the normal puts 0.9981 within it
    assert expanded_level(0.95, 5) == pytest.approx(0.99809, abs=1e-5)
    assert expanded_level(0.95, 100_000) == pytest.approx(0.95, abs=1e-5)


def test_on_symmetric_rows_bca_is_near_students_interval():
    half = np.random.default_rng(2).normal(0.0, 1.0, 15)
    values = np.concatenate([half, -half]) + 0.3
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mine = mean_interval(values, level=0.95, num_resamples=20_000, seed=0)
    assert mine.ends == pytest.approx((reference.low, reference.high), abs=0.02)


def test_large_samples_use_students_t():
    values = np.random.default_rng(7).normal(0.1, 1.0, MAX_RESAMPLED_ROWS + 1)
    mine = mean_interval(values, level=0.95, num_resamples=200, seed=0)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mine.method == "t"
    assert sign_flip_p(values, num_resamples=200, seed=0)[0] == pytest.approx(
        stats.ttest_1samp(values, 0).pvalue
    )
    assert mine.ends == pytest.approx((reference.low, reference.high), rel=1e-9)


@pytest.mark.parametrize(("value", "p_value"), [(0.0, 1.0), (1.0, 2 / 2**5), (-1.0, 2 / 2**5)])
def test_equal_differences_have_no_spread_and_say_so(value, p_value):
    result = run([value] * 5)
    assert result.interval.ends == (value, value)
    assert result.interval.note == "all differences are equal"
    assert result.p_value == pytest.approx(p_value)
    assert result.sd == 0.0


def test_one_row_has_no_interval():
    result = run([1.0])
    assert result.interval.ends is None
    assert result.interval.note == "one row has no spread"
    assert result.p_value == 1.0
    assert result.sd is None


@pytest.mark.parametrize("differences", [[], [1.0, math.nan], [math.inf]])
def test_empty_or_not_finite_is_refused(differences):
    with pytest.raises(ValueError, match="finite"):
        run(differences)


def test_clusters_of_one_row_each_are_the_robust_t_interval():
    values = np.random.default_rng(8).normal(0.3, 1.0, 50)
    mine = mean_interval(values, level=0.95, num_resamples=200, seed=0, clusters_B=np.arange(50))
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mine.method == "clustered"
    assert mine.ends == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_copied_rows_add_nothing_once_clustered():
    values = np.random.default_rng(9).normal(0.3, 1.0, 12)
    copies, labels = np.repeat(values, 5), np.repeat(np.arange(12), 5)
    alone = mean_interval(values, level=0.95, num_resamples=500, seed=0, clusters_B=np.arange(12)).ends
    copied = run(copies, clusters_B=labels)
    naive = run(copies).interval.ends
    assert copied.num_clusters == 12
    # the finite-sample factor differs a little: (n - 1) / (n - k) with n counting rows
    assert np.diff(copied.interval.ends)[0] == pytest.approx(np.diff(alone)[0], rel=1e-9)
    assert np.diff(naive)[0] < 0.6 * np.diff(alone)[0]
    assert copied.p_value == pytest.approx(sign_flip_p(values, num_resamples=4096, seed=0)[0], abs=0.03)


def test_clusters_of_unequal_size_are_as_statsmodels_has_them():
    import statsmodels.api as sm

    rng = np.random.default_rng(10)
    labels = rng.integers(6, size=50)
    values = rng.normal(0.3, 1.0, 50) + labels
    fit = sm.OLS(values, np.ones(50)).fit(cov_type="cluster", cov_kwds={"groups": labels}, use_t=True)
    mine = run(values, clusters_B=labels)
    assert mine.interval.ends == pytest.approx(tuple(fit.conf_int(0.05)[0]), rel=1e-9)
    assert mine.standard_error == pytest.approx(fit.bse[0], rel=1e-9)


def test_clusters_whose_rows_cancel_out_have_no_spread():
    values, labels = np.array([1.5, 0.5] * 20), np.repeat(np.arange(20), 2)
    interval = run(values, clusters_B=labels).interval
    assert (interval.method, interval.ends) == ("constant", (1.0, 1.0))


def test_one_cluster_has_no_interval():
    result = run([1.0, 2.0, 0.5], clusters_B=np.zeros(3, dtype=np.int64))
    assert result.interval.note == "all rows are of one cluster"
    assert result.p_value == 1.0


def test_cluster_sums_by_label():
    sums = cluster_sums(np.array([1.0, 2.0, 3.0, 4.0]), np.array([7, 2, 7, 2]))
    assert sums.tolist() == [6.0, 4.0]


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04 times 3, 2, 1, and never below the one before
    assert holm(np.array([0.04, 0.01, 0.02])).tolist() == pytest.approx([0.04, 0.03, 0.04])


@pytest.mark.parametrize("num_tests", [1, 2, 5, 40])
def test_holm_as_statsmodels_has_it(num_tests: int) -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(num_tests).choice([0.001, 0.01, 0.04, 0.3, 0.3, 1.0], num_tests)
    assert holm(p_values).tolist() == multipletests(p_values, method="holm")[1].tolist()


def test_worst_cases_by_hand():
    # 8 rows with mean 0.5, 2 rows missing, scores from 1 to 5: (8 * 0.5 -+ 2 * 4) / 10
    assert worst_cases(0.5, 8, 2, 4.0) == pytest.approx((-0.4, 1.2))


@given(SCORES, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_row_order_does_not_matter(differences, random):
    order = list(range(differences.size))
    random.shuffle(order)
    assert run(differences, num_resamples=200) == run(differences[order], num_resamples=200)


@given(SCORES)
@settings(max_examples=40, deadline=None)
def test_swapping_the_models_mirrors_the_result(differences):
    one, other = run(differences, num_resamples=200), run(-differences, num_resamples=200)
    assert other.mean_difference == -one.mean_difference
    assert (other.wins, other.ties, other.losses) == (one.losses, one.ties, one.wins)
    assert other.p_value == one.p_value
    assert other.interval == one.interval.mirrored()


@given(SCORES)
@settings(max_examples=40, deadline=None)
def test_the_interval_holds_the_mean(differences):
    result = run(differences, num_resamples=200)
    low, high = result.interval.ends
    assert differences.min() <= low <= high <= differences.max()
    assert 0.0 < result.p_value <= 1.0
