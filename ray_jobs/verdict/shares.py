"""Paired shares: how often two models pass the same yes-or-no checks."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.verdict.statistics import Interval, Labels, mean_interval, sign_flip_p

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class PairedShares:
    """Shares of the same rows that the base and the candidate pass, and candidate minus base."""

    num_rows: int
    base: float
    candidate: float
    difference: float
    interval: Interval
    p_value: float
    """Exact McNemar test; with clusters the sign-flip test."""
    p_wanted: float
    """Of "the difference is the wanted one": the same test where that is 0, else the larger of Tango's
    score test, which is too sure at shares near 0, and of Newcombe's interval."""


def compare_shares(
    base_B: Flags,
    candidate_B: Flags,
    *,
    level: float,
    wanted: float = 0.0,
    clusters_B: Labels | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedShares:
    """Shares, their difference with Newcombe's interval, and p-values at no and at the `wanted` difference.

    Both take rows for independent. Where rows come in clusters, the interval is that of a mean of clustered
    differences, and whole clusters flip sign. Raises ValueError when there are no rows or the two lengths
    differ.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if base_B.shape != candidate_B.shape or base_B.size == 0:
        raise ValueError("both models need the same rows, and at least one")
    both, only_base = int((base_B & candidate_B).sum()), int((base_B & ~candidate_B).sum())
    only_candidate = int((~base_B & candidate_B).sum())
    neither = base_B.size - both - only_base - only_candidate
    if clusters_B is None:
        test = mcnemar([[both, only_base], [only_candidate, neither]], exact=True)
        interval = newcombe_interval(both, only_base, only_candidate, neither, level=level)
        p_value = min(1.0, float(test.pvalue))
        counts = both, only_base, only_candidate, neither
        p_wanted = max(score_p(*counts, wanted), newcombe_p(*counts, wanted)) if wanted else p_value
    else:
        differences_B = candidate_B.astype(np.float64) - base_B
        interval = mean_interval(
            differences_B, level=level, num_resamples=num_resamples, seed=seed, clusters_B=clusters_B
        )
        p_value, p_wanted = (
            sign_flip_p(
                differences_B - expected, num_resamples=num_resamples, seed=seed, clusters_B=clusters_B
            )[0]
            for expected in (0.0, wanted)
        )
    return PairedShares(
        num_rows=base_B.size,
        base=float(base_B.mean()),
        candidate=float(candidate_B.mean()),
        difference=(only_candidate - only_base) / base_B.size,
        interval=interval,
        p_value=p_value,
        p_wanted=p_wanted,
    )


def score_p(both: int, only_base: int, only_candidate: int, neither: int, wanted: float) -> float:
    """Two-sided p-value of "candidate minus base is `wanted`": Tango 1998, Statistics in Medicine 17:891.

    The variance is that of the likeliest shares with that difference; at 0 it is McNemar's.
    """
    n = both + only_base + only_candidate + neither
    linear = (2 * n - only_candidate + only_base) * wanted - only_base - only_candidate
    root = math.sqrt(max(0.0, linear**2 + 8 * n * only_base * wanted * (1 - wanted)))
    variance = n * ((root - linear) / (2 * n) + wanted * (1 - wanted))
    if variance <= 0:
        return 1.0
    return math.erfc(abs(only_candidate - only_base - n * wanted) / math.sqrt(2 * variance))


def newcombe_p(both: int, only_base: int, only_candidate: int, neither: int, wanted: float) -> float:
    """One minus the level at which Newcombe's interval just reaches the wanted difference."""
    from scipy.optimize import brentq

    above = only_candidate - only_base > wanted * (both + only_base + only_candidate + neither)

    def beyond(log_alpha: float) -> float:
        """How far the interval's nearer end is from the wanted difference, below 0 where it holds it."""
        level = 1 - math.exp(log_alpha)
        interval = newcombe_interval(both, only_base, only_candidate, neither, level=level)
        assert interval.low is not None
        assert interval.high is not None
        return interval.low - wanted if above else wanted - interval.high

    least, most = math.log(1e-15), math.log(1 - 1e-9)
    if beyond(most) <= 0:
        return 1.0
    return math.exp(float(brentq(beyond, least, most, xtol=1e-6))) if beyond(least) < 0 else 1e-15


def newcombe_interval(
    both: int, only_base: int, only_candidate: int, neither: int, *, level: float
) -> Interval:
    """Interval of candidate minus base: Newcombe 1998, Statistics in Medicine 17:2635, method 10.

    It joins the two Wilson intervals and keeps its coverage at small counts and at shares of 0 and 1.
    """
    from statsmodels.stats.proportion import proportion_confint

    n = both + only_base + only_candidate + neither
    base, candidate = (both + only_base) / n, (both + only_candidate) / n
    base_low, base_high = proportion_confint(both + only_base, n, 1 - level, method="wilson")
    cand_low, cand_high = proportion_confint(both + only_candidate, n, 1 - level, method="wilson")
    phi = _phi(both, only_base, only_candidate, neither)
    below = _joined(candidate - cand_low, base_high - base, phi)
    above = _joined(cand_high - candidate, base - base_low, phi)
    difference = candidate - base
    return Interval(max(-1.0, difference - below), min(1.0, difference + above), level, "newcombe")


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _phi(both: int, only_base: int, only_candidate: int, neither: int) -> float:
    """Correlation of the two models' flags, with Newcombe's continuity correction where it is positive."""
    margins = (
        (both + only_base) * (only_candidate + neither) * (both + only_candidate) * (only_base + neither)
    )
    if margins == 0:
        return 0.0
    product: float = both * neither - only_base * only_candidate
    n = both + only_base + only_candidate + neither
    if product > 0:
        product = max(product - n / 2, 0.0)
    return product / math.sqrt(margins)
