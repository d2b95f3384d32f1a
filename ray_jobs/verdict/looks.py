"""Bounds for looking at a verdict before all rows are in.

Alpha-spending functions of Lan and DeMets 1983; the bounds follow by the recursive integration of
Armitage, McPherson and Rowe 1969 over the statistic's path. Both sides are spent alike.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ray_jobs.verdict.statistics import Floats

Spending = Literal["obrien_fleming", "pocock"]
_GRID = 2001
_MAX_BOUND = 6.1
"""A two-sided level of 1e-9, which no verdict's rows reach: looks too early for any level get this one."""


def spent(share: float, alpha: float, spending: Spending) -> float:
    """The part of a one-sided `alpha` that may be used up once `share` of the rows is in."""
    from scipy import stats

    if spending == "pocock":
        return alpha * math.log(1 + (math.e - 1) * share)
    return float(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / math.sqrt(share)))


def nominal_alphas(shares: Sequence[float], alpha: float, spending: Spending) -> list[float]:
    """The two-sided level of the test at each look, so that all looks together keep `alpha`.

    `shares` are the shares of the planned rows at the looks, rising to 1.
    """
    from scipy import optimize, stats

    bounds: list[float] = []
    used, path = 0.0, None
    for index, share in enumerate(shares):
        target = spent(share, alpha / 2, spending) - used
        step = share - (shares[index - 1] if index else 0.0)

        def excess(bound: float, path: tuple[Floats, Floats] | None = path, step: float = step) -> float:
            return _crossing(path, step, bound * math.sqrt(share)) - target  # noqa: B023

        bound = _MAX_BOUND if excess(_MAX_BOUND) > 0 else optimize.brentq(excess, 0.0, _MAX_BOUND, xtol=1e-10)
        bounds.append(bound)
        path = _continued(path, step, bound * math.sqrt(share))
        used += target
    return [float(2 * stats.norm.sf(bound)) for bound in bounds]


def _crossing(path: tuple[Floats, Floats] | None, step: float, limit: float) -> float:
    """Chance that the path, inside its bounds so far, ends above `limit` after one more step."""
    from scipy import stats

    if path is None:
        return float(stats.norm.sf(limit / math.sqrt(step)))
    grid, density = path
    return float(np.trapezoid(density * stats.norm.sf((limit - grid) / math.sqrt(step)), grid))


def _continued(path: tuple[Floats, Floats] | None, step: float, limit: float) -> tuple[Floats, Floats]:
    """The density of the paths that stay within `limit` on both sides, after one more step."""
    from scipy import stats

    grid = np.linspace(-limit, limit, _GRID)
    if path is None:
        return grid, stats.norm.pdf(grid, scale=math.sqrt(step))
    before, density = path
    kernel = stats.norm.pdf(grid[:, None] - before[None, :], scale=math.sqrt(step))
    return grid, np.trapezoid(kernel * density, before, axis=1)
