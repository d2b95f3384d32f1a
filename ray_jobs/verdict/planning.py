"""How many prompts a verdict takes, before a night is spent on it.

Gains count from the minimal gain, which the interval has to clear.
"""

import math

from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.statistics import Paired


def min_detectable_difference(num_prompts: int, sd: float, level: float, power: float) -> float | None:
    """The smallest gain whose interval lies above 0 with chance `power`; null where there is no test."""
    from statsmodels.stats.power import TTestPower

    if num_prompts < 2 or sd <= 0:
        return None
    effect = TTestPower().solve_power(
        nobs=num_prompts, alpha=(1 - level) / 2, power=power, alternative="larger"
    )
    return float(effect) * sd


def prompts_for_gain(gain: float, sd: float, level: float, power: float) -> int:
    """The fewest prompts on which the interval of a `gain` lies above 0 with chance `power`."""
    low, high = 2, 2
    while predicted_power(gain, sd, high, level) < power:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        enough = predicted_power(gain, sd, middle, level) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    return high


def fewest_rows(level: float) -> int:
    """Independent rows below which no sign-flip test is significant: its least p-value is 2 / 2**rows."""
    return math.ceil(1 - math.log2(1 - level))


def detectable_gain(settings: VerdictSettings, paired: Paired, level: float) -> float | None:
    """The smallest true gain that these rows show to be above the minimal one; null where there is no spread,
    or there are too few independent rows for any."""
    if paired.num_independent < fewest_rows(level):
        return None
    above = min_detectable_difference(paired.num_independent, paired.spread or 0.0, level, settings.power)
    return None if above is None else settings.min_gain + above


def prompts_for_wished_gain(settings: VerdictSettings, paired: Paired, level: float) -> int | None:
    """Null where nothing is wished for, or the differences have no spread.

    Of clustered rows as many a cluster as now.
    """
    if settings.wished_gain is None or not paired.spread:
        return None
    above = settings.wished_gain - settings.min_gain
    needed = prompts_for_gain(above, paired.spread, level, settings.power)
    independent = max(needed, fewest_rows(level))
    return math.ceil(independent * paired.num_rows / paired.num_independent)


def predicted_power(gain: float, sd: float, num_prompts: int, level: float) -> float:
    """Chance that the interval of `num_prompts` paired differences lies wholly above 0."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().power(gain / sd, num_prompts, (1 - level) / 2, alternative="larger"))
