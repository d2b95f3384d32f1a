import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.verdict.shares import compare_shares, newcombe_interval

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
