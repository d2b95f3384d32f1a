"""What answer length does to scores. Lengths are in characters, which every tokenizer agrees on."""

from dataclasses import dataclass

import numpy as np

from ray_jobs.verdict.statistics import TIE, Floats, Interval, Labels

MIN_ROWS = 4


@dataclass(frozen=True)
class Estimate:
    """A coefficient of a regression with its interval; null exactly when the interval's note says why."""

    value: float | None
    interval: Interval
    p_value: float | None = None


def length_adjusted(
    differences_B: Floats, length_differences_B: Floats, *, level: float, clusters_B: Labels | None = None
) -> Estimate:
    """The score difference at equal length: the intercept of `difference ~ 1 + tanh(length difference / sd)`.

    The idea and the squashed, standardised length term are AlpacaEval 2's (arXiv 2404.04475), there for a
    win probability, here for a difference of scores. Errors are heteroscedasticity-robust (HC3), or
    clustered. Null where all length differences are equal but not 0, or rows are too few.
    """
    spread = float(np.std(length_differences_B)) if length_differences_B.size else 0.0
    if differences_B.size < MIN_ROWS:
        return _none(level, f"needs at least {MIN_ROWS} rows")
    if spread <= TIE and np.abs(length_differences_B).max() > TIE:
        return _none(level, "all length differences are equal, so length cannot be told from quality")
    design = np.ones((differences_B.size, 1))
    if spread > TIE:
        design = np.column_stack([design, np.tanh(length_differences_B / spread)])
    return _coefficient(differences_B, design, 0, level, clusters_B)


def slope(
    values_B: Floats,
    lengths_B: Floats,
    *,
    level: float,
    clusters_B: Labels | None = None,
    per: float = 100.0,
) -> Estimate:
    """How much `values` rise per `per` units of length, by least squares with robust errors: HC3, or
    clustered."""
    if values_B.size < MIN_ROWS:
        return _none(level, f"needs at least {MIN_ROWS} rows")
    if np.ptp(lengths_B) <= TIE:
        return _none(level, "all lengths are equal")
    design = np.column_stack([np.ones(values_B.size), lengths_B / per])
    return _coefficient(values_B, design, 1, level, clusters_B)


def _coefficient(
    values_B: Floats, design: Floats, index: int, level: float, clusters_B: Labels | None
) -> Estimate:
    import statsmodels.api as sm

    if np.ptp(values_B) <= TIE:
        constant = float(values_B[0]) if index == 0 else 0.0
        return Estimate(constant, Interval(constant, constant, level, "constant", "all values are equal"))
    if clusters_B is not None and np.unique(clusters_B).size <= design.shape[1]:
        return _none(level, "too few clusters")
    order = np.lexsort((*design.T, values_B))
    model = sm.OLS(values_B[order], design[order])
    if clusters_B is None:
        leverage = np.einsum("bi,ib->b", design, np.linalg.pinv(design))
        if leverage.max() > 1 - 1e-9:
            return _none(level, "a single row decides the slope")
        fit = model.fit(cov_type="HC3", use_t=True)
    else:
        fit = model.fit(cov_type="cluster", cov_kwds={"groups": clusters_B[order]}, use_t=True)
    low, high = fit.conf_int(1 - level)[index]
    numbers = (fit.params[index], low, high, fit.pvalues[index])
    if not np.isfinite(numbers).all():
        return _none(level, "the regression has no unique answer")
    value, low, high, p_value = (float(number) for number in numbers)
    return Estimate(value, Interval(low, high, level, "regression"), p_value)


def _none(level: float, note: str) -> Estimate:
    return Estimate(None, Interval(None, None, level, "none", note))
