import numpy as np
import pytest
from scipy import stats

from ray_jobs.verdict.looks import nominal_alphas, spent

LOOKS = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("spending", "bounds"),
    [
        # Lan and DeMets' bounds for five equal looks at two-sided 0.05, as design software tabulates them
        ("obrien_fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_published_bounds(spending, bounds):
    found = stats.norm.isf(np.array(nominal_alphas(LOOKS, 0.05, spending)) / 2)
    assert found == pytest.approx(bounds, abs=1.5e-3)


def test_one_look_spends_all():
    assert nominal_alphas([1.0], 0.05, "pocock") == pytest.approx([0.05])
    assert spent(1.0, 0.025, "obrien_fleming") == pytest.approx(0.025)


def test_all_looks_together_keep_the_level():
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(40_000, 3)) * np.sqrt([0.3, 0.3, 0.4])
    paths = np.cumsum(steps, axis=1) / np.sqrt([0.3, 0.6, 1.0])
    bounds = stats.norm.isf(np.array(nominal_alphas([0.3, 0.6, 1.0], 0.05, "obrien_fleming")) / 2)
    crossed = (np.abs(paths) > bounds).any(axis=1).mean()
    assert crossed == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 40_000))


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
@pytest.mark.parametrize("early", [(0.02, 0.5), (0.03,), (0.001, 0.002, 0.9), (0.5, 0.5001), (0.1, 0.999)])
def test_every_rising_row_of_looks_has_levels(early, spending):
    alphas = nominal_alphas([*early, 1.0], 0.05, spending)
    assert all(1e-9 < alpha < 0.05 + 1e-9 for alpha in alphas)


def test_looks_too_early_for_any_level_take_none_from_the_others():
    assert nominal_alphas([0.02, 0.5, 1.0], 0.05, "obrien_fleming") == pytest.approx(
        [1.06e-9, *nominal_alphas([0.5, 1.0], 0.05, "obrien_fleming")], abs=1e-6
    )
