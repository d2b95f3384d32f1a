"""Paired statistics on scores of two models for the same prompts.

Every function takes plain arrays and a seed, and gives the same result whatever the order of its rows;
swapping the two models exactly mirrors it. B is the number of prompts scored for both models.

Sources: BCa interval: Efron 1987, as scipy.stats.bootstrap has it, at Hesterberg's expanded level; sign-flip
test: scipy.stats.permutation_test; cluster-robust errors: Liang and Zeger 1986, as statsmodels has them, with
one degree of freedom less than clusters.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

TIE = 1e-9
MAX_RESAMPLES = 200_000
RESAMPLES_PER_LEVEL = 50
"""Resamples times level: what leaves enough of them in the tails."""
MAX_RESAMPLED_ROWS = 5_000
"""Above it Student's t takes over from resampling: the same to three digits there, and minutes faster."""
_BATCH_VALUES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval. Both ends are null exactly when `note` says why there is none."""

    low: float | None
    high: float | None
    level: float
    method: str
    note: str | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    def mirrored(self) -> "Interval":
        if self.low is None or self.high is None:
            return self
        return replace(self, low=-self.high + 0.0, high=-self.low + 0.0)


@dataclass(frozen=True)
class Paired:
    """Candidate minus base over the prompts scored for both."""

    num_rows: int
    num_clusters: int | None
    mean_difference: float
    sd: float | None
    """Standard deviation of the differences (n - 1); null for one row."""
    standard_error: float | None
    """Of the mean, cluster-robust where rows come in clusters; null for one row or one cluster."""
    interval: Interval
    p_value: float
    exact: bool
    """Whether the p-value counts every sign flip instead of a sample of them."""
    wins: int
    ties: int
    losses: int

    @property
    def num_independent(self) -> int:
        """Rows, or the clusters that they come in."""
        return self.num_rows if self.num_clusters is None else self.num_clusters

    @property
    def spread(self) -> float | None:
        """Standard deviation that as many independent rows would have for this standard error."""
        error = self.standard_error
        return None if error is None else error * math.sqrt(self.num_independent)


def enough_resamples(wanted: int, alpha: float) -> int:
    """Enough for a p-value of `alpha`: early looks have levels that the configured number cannot reach."""
    return max(wanted, min(MAX_RESAMPLES, math.ceil(RESAMPLES_PER_LEVEL / alpha)))


def compare(
    differences_B: Floats, *, level: float, num_resamples: int, seed: int, clusters_B: Labels | None = None
) -> Paired:
    """Mean, interval, p-value and wins of paired differences.

    Raises ValueError when there are no rows or a difference is not finite.
    """
    differences_B = np.asarray(differences_B, dtype=np.float64)
    if differences_B.size == 0 or not np.isfinite(differences_B).all():
        raise ValueError("differences must be finite, and at least one")
    p_value, exact = sign_flip_p(differences_B, num_resamples=num_resamples, seed=seed, clusters_B=clusters_B)
    return Paired(
        num_rows=differences_B.size,
        num_clusters=None if clusters_B is None else int(np.unique(clusters_B).size),
        mean_difference=math.fsum(differences_B) / differences_B.size,
        sd=float(np.std(np.sort(differences_B), ddof=1)) if differences_B.size > 1 else None,
        standard_error=standard_error(differences_B, clusters_B),
        interval=mean_interval(
            differences_B, level=level, num_resamples=num_resamples, seed=seed, clusters_B=clusters_B
        ),
        p_value=p_value,
        exact=exact,
        wins=int((differences_B > TIE).sum()),
        ties=int((np.abs(differences_B) <= TIE).sum()),
        losses=int((differences_B < -TIE).sum()),
    )


def mean_interval(
    values_B: Floats, *, level: float, num_resamples: int, seed: int, clusters_B: Labels | None = None
) -> Interval:
    """Interval of the mean: BCa bootstrap for independent rows, cluster-robust t otherwise."""
    if values_B.size < 2:
        return Interval(None, None, level, "none", "one row has no spread")
    if clusters_B is not None:
        return _clustered_interval(values_B, clusters_B, level)
    sorted_B, flipped = _oriented(values_B)
    if sorted_B[-1] - sorted_B[0] <= TIE:
        mean = float(sorted_B[0])
        interval = Interval(mean, mean, level, "constant", "all differences are equal")
    elif values_B.size > MAX_RESAMPLED_ROWS:
        interval = t_interval(sorted_B, level)
    else:
        interval = _bca_interval(sorted_B, level, num_resamples, seed)
    return interval.mirrored() if flipped else interval


def t_interval(values_B: Floats, level: float) -> Interval:
    """Student's interval of a mean; what the bootstrap comes to with thousands of rows."""
    error = stats.sem(values_B)
    low, high = stats.t.interval(level, values_B.size - 1, loc=values_B.mean(), scale=error)
    return Interval(float(low), float(high), level, "t")


def _bca_interval(sorted_B: Floats, level: float, num_resamples: int, seed: int) -> Interval:
    result = stats.bootstrap(
        (sorted_B,),
        np.mean,
        confidence_level=expanded_level(level, sorted_B.size),
        n_resamples=num_resamples,
        batch=max(1, _BATCH_VALUES // sorted_B.size),
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in result.confidence_interval)
    if math.isfinite(low) and math.isfinite(high):
        return Interval(low, high, level, "bca")
    # BCa has no answer where every resample falls on one side of the mean.
    expanded = expanded_level(level, sorted_B.size)
    tails = [(1 - expanded) / 2, (1 + expanded) / 2]
    low, high = (float(end) for end in np.quantile(result.bootstrap_distribution, tails))
    return Interval(low, high, level, "percentile")


def expanded_level(level: float, num_rows: int) -> float:
    """The bootstrap level that covers with `level`: resamples spread less than samples, by sqrt((n-1)/n),
    and know nothing of Student's t (Hesterberg 2015, The American Statistician 69:371, section 3.3)."""
    reach = math.sqrt(num_rows / (num_rows - 1)) * stats.t.ppf((1 + level) / 2, num_rows - 1)
    return 1 - max(1e-9, float(2 * stats.norm.sf(reach)))


def standard_error(values_B: Floats, clusters_B: Labels | None = None) -> float | None:
    """Of the mean; with clusters from their summed residuals, G of them. Null where there is but one."""
    if clusters_B is None:
        return float(stats.sem(np.sort(values_B))) if values_B.size > 1 else None
    sums_G = cluster_sums(values_B - math.fsum(values_B) / values_B.size, clusters_B)
    if sums_G.size < 2:
        return None
    return math.sqrt(sums_G.size / (sums_G.size - 1) * math.fsum(sums_G**2)) / values_B.size


def _clustered_interval(values_B: Floats, clusters_B: Labels, level: float) -> Interval:
    error = standard_error(values_B, clusters_B)
    if error is None:
        return Interval(None, None, level, "none", "all rows are of one cluster")
    mean = math.fsum(values_B) / values_B.size
    if error <= TIE:
        return Interval(mean, mean, level, "constant", "the clusters' sums have no spread")
    reach = float(stats.t.ppf((1 + level) / 2, np.unique(clusters_B).size - 1)) * error
    return Interval(mean - reach, mean + reach, level, "clustered")


def sign_flip_p(
    values_B: Floats, *, num_resamples: int, seed: int, clusters_B: Labels | None = None
) -> tuple[float, bool]:
    """Two-sided p-value of "the differences are symmetric about 0", and whether it is exact.

    With clusters, all rows of a cluster flip together. Exact where 2**rows is at most `num_resamples`.
    """
    if clusters_B is not None:
        values_B = cluster_sums(values_B, clusters_B)
    # A difference of 0 flips to itself: leaving it out changes no p-value and makes more tests exact.
    sorted_B, _ = _oriented(values_B[np.abs(values_B) > TIE])
    if sorted_B.size < 2:
        return 1.0, True
    if sorted_B.size > MAX_RESAMPLED_ROWS:
        return float(stats.ttest_1samp(np.sort(values_B), 0.0).pvalue), False
    result = stats.permutation_test(
        (sorted_B,),
        lambda values, axis: np.sum(values, axis=axis),
        permutation_type="samples",
        n_resamples=num_resamples,
        batch=max(1, _BATCH_VALUES // sorted_B.size),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(result.pvalue)), sorted_B.size <= math.log2(num_resamples)


def cluster_sums(values_B: Floats, clusters_B: Labels) -> Floats:
    """The exact sum of each cluster's values, by rising label."""
    order = np.argsort(clusters_B, kind="stable")
    starts = np.flatnonzero(np.diff(clusters_B[order])) + 1
    sorted_B, bounds = values_B[order], (0, *starts.tolist(), values_B.size)
    return np.array([math.fsum(sorted_B[start:end]) for start, end in pairwise(bounds)])


def _oriented(values_B: Floats) -> tuple[Floats, bool]:
    """The values or their negatives, sorted, whichever sorts last; and whether they were negated.

    Resampling one orientation only makes the order of rows and the naming of the models irrelevant.
    """
    rising_B, mirrored_B = np.sort(values_B), np.sort(-values_B)
    unequal = np.flatnonzero(rising_B != mirrored_B)
    flipped = unequal.size > 0 and mirrored_B[unequal[0]] > rising_B[unequal[0]]
    return (mirrored_B if flipped else rising_B), bool(flipped)


def holm(p_values_M: Floats) -> Floats:
    """P-values corrected for M tests by Holm's step-down method (Scandinavian J. of Statistics 6:65, 1979).

    Not statsmodels' (0.15), which collects all of the process's garbage at each call.
    """
    order_M = np.argsort(p_values_M)
    raised_M = p_values_M[order_M] * np.arange(p_values_M.size, 0, -1)
    corrected_M = np.empty(p_values_M.size)
    corrected_M[order_M] = np.minimum(np.maximum.accumulate(raised_M), 1.0)
    return corrected_M


def worst_cases(
    mean_difference: float, num_rows: int, num_missing: int, score_range: float
) -> tuple[float, float]:
    """The mean difference if every missing row had gone wholly to the base, or to the candidate."""
    total = num_rows + num_missing
    observed, missing = mean_difference * num_rows / total, score_range * num_missing / total
    return observed - missing, observed + missing
