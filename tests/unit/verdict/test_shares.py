import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from ray_jobs.verdict.shares import compare_shares, newcombe_interval, newcombe_p, score_p
from ray_jobs.verdict.statistics import holm

FLAGS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def flags(both, only_base, only_candidate, neither):
    base = [True] * both + [True] * only_base + [False] * only_candidate + [False] * neither
    candidate = [True] * both + [False] * only_base + [True] * only_candidate + [False] * neither
    return np.array(base), np.array(candidate)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Newcombe 1998, table of worked examples, method 10 (there the other way round: 0.0569 to 0.3404)
        ((36, 12, 2, 0), -0.3404, -0.0569),
        ((20, 12, 2, 16), -0.3292, -0.0562),
        ((0, 0, 0, 20), -0.1611, 0.1611),
    ],
)
def test_newcombes_worked_examples(counts, low, high):
    assert newcombe_interval(*counts, level=0.95).ends == pytest.approx((low, high), abs=5e-5)


def test_mcnemar_is_the_binomial_test_on_the_rows_that_differ():
    # 1 row against 9: two-sided binomial p = 2 * (1 + 10) / 2**10
    result = compare_shares(*flags(5, 1, 9, 5), level=0.95)
    assert result.p_value == pytest.approx(22 / 1024)
    assert (result.base, result.candidate) == (0.3, 0.7)
    assert result.difference == pytest.approx(0.4)


def test_interval_covers_at_small_counts():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        base = rng.random(30) < 0.1
        candidate = np.where(rng.random(30) < 0.5, base, rng.random(30) < 0.6)
        low, high = compare_shares(base, candidate, level=0.95).interval.ends
        covered += low <= 0.25 <= high
    assert 0.93 <= covered / 600 <= 0.985


def test_different_or_no_rows_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        compare_shares(np.array([True]), np.array([True, False]), level=0.95)
    with pytest.raises(ValueError, match="at least one"):
        compare_shares(np.array([], dtype=bool), np.array([], dtype=bool), level=0.95)


@given(FLAGS)
@settings(max_examples=60, deadline=None)
def test_swapping_the_models_mirrors_the_shares(rows):
    base, candidate = (np.array(column) for column in zip(*rows, strict=True))
    one, other = compare_shares(base, candidate, level=0.95), compare_shares(candidate, base, level=0.95)
    assert other.p_value == one.p_value
    assert other.interval.ends == pytest.approx(one.interval.mirrored().ends, abs=1e-12)
    assert -1 <= one.interval.low <= one.difference <= one.interval.high <= 1


def test_rows_of_one_cluster_are_no_more_than_one():
    """Ten copies of each of six rows: as rows they prove a gain, as clusters they do not."""
    base = np.zeros(60, dtype=np.bool_)
    candidate = np.repeat(np.array([True, True, True, True, False, False]), 10)
    labels = np.repeat(np.arange(6), 10)
    alone = compare_shares(base, candidate, level=0.95)
    clustered = compare_shares(base, candidate, level=0.95, clusters_B=labels)
    assert alone.difference == clustered.difference
    assert alone.p_value < 1e-6
    assert clustered.p_value == pytest.approx(2 / 2**4)
    low, high = clustered.interval.ends
    assert high - low > 2 * (alone.interval.high - alone.interval.low)


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (20, 2, 12, 16), (0, 0, 9, 20), (5, 1, 0, 3)])
@pytest.mark.parametrize("wanted", [0.02, 0.1, 0.4])
def test_the_score_test_has_the_variance_of_the_likeliest_shares(counts, wanted):
    both, only_base, only_candidate, neither = counts
    n = sum(counts)

    def unlikelihood(share):
        return -(
            only_base * np.log(share)
            + only_candidate * np.log(share + wanted)
            + (both + neither) * np.log(1 - 2 * share - wanted)
        )

    share = optimize.minimize_scalar(unlikelihood, bounds=(1e-12, (1 - wanted) / 2 - 1e-12), method="bounded")
    variance = n * (2 * share.x + wanted - wanted**2)
    z = (only_candidate - only_base - n * wanted) / np.sqrt(variance)
    assert score_p(*counts, wanted) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-3)


def test_at_no_difference_the_score_test_is_mcnemars():
    reference = mcnemar([[20, 2], [12, 16]], exact=False, correction=False).pvalue
    assert score_p(20, 2, 12, 16, 0.0) == pytest.approx(reference)
    assert compare_shares(*flags(20, 2, 12, 16), level=0.95).p_wanted == pytest.approx(
        2 * (1 + 14 + 91) / 2**14
    )


def test_clusters_flip_around_the_wanted_difference():
    """Ten clusters of five rows, of which four gain in each: the excess over 0.8 is 0 in all of them."""
    base, candidate = np.zeros(50, dtype=np.bool_), np.arange(50) % 5 > 0
    found = compare_shares(base, candidate, level=0.95, wanted=0.8, clusters_B=np.arange(50) // 5)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.p_wanted == 1.0


def test_a_wanted_gain_is_claimed_no_oftener_than_the_level_says_whatever_the_number_of_candidates():
    """Five candidates gain exactly what is wanted. By p-values of "no gain", 9 % of runs promoted one."""
    rng = np.random.default_rng(0)
    wanted, repeats, claimed = 0.1, 1000, 0
    for _ in range(repeats):
        base, draws = rng.random(200) < 0.4, rng.random((5, 200))
        candidates = np.where(base, draws >= 0.2, draws < 0.3)
        both, gained = (base & candidates).sum(axis=1), (~base & candidates).sum(axis=1)
        lost = base.sum() - both
        counts = [(b, lo, ga, 200 - b - lo - ga) for b, lo, ga in zip(both, lost, gained, strict=True)]
        p_values = np.array([score_p(*row, wanted) for row in counts])
        if p_values.min() <= 0.05 / 5:  # else none is left after the correction, which is slow
            claimed += bool(np.any((holm(p_values) <= 0.05) & (gained - lost > 200 * wanted)))
    assert claimed / repeats == pytest.approx(0.025, abs=0.01)


@pytest.mark.parametrize(
    ("both", "only_base", "only_candidate", "neither"), [(0, 0, 18, 70), (30, 5, 20, 45), (15, 25, 10, 10)]
)
@pytest.mark.parametrize("wanted", [0.05, 0.1, 0.3])
def test_newcombes_p_value_is_where_its_interval_ends(
    both: int, only_base: int, only_candidate: int, neither: int, wanted: float
) -> None:
    p_value = newcombe_p(both, only_base, only_candidate, neither, wanted)
    interval = newcombe_interval(both, only_base, only_candidate, neither, level=1 - p_value)
    assert min(abs(interval.low - wanted), abs(interval.high - wanted)) < 1e-4
    assert p_value < 1


def test_candidates_of_a_base_that_passes_nothing_are_not_promoted_too_often() -> None:
    """Where the normal approximation of the score test is too light: ten with just that gain."""
    from scipy.stats import binom

    num_rows, wanted, num_candidates, alpha = 200, 0.1, 10, 0.05
    base = np.zeros(num_rows, np.bool_)

    def promoted(passed: int) -> bool:
        shares = compare_shares(base, np.arange(num_rows) < passed, level=1 - alpha, wanted=wanted)
        assert shares.interval.low is not None
        return shares.interval.low > wanted and shares.p_wanted * num_candidates <= alpha

    fewest = next(passed for passed in range(num_rows) if promoted(passed))
    each = float(binom.sf(fewest - 1, num_rows, wanted))
    assert 1 - (1 - each) ** num_candidates <= alpha / 2
