"""How many prompts a verdict takes, before a night is spent on it."""

from dataclasses import dataclass

from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.words import percent


@dataclass(frozen=True)
class PowerPlan:
    """What a planned number of prompts can show. Differences are in score units."""

    num_prompts: int
    sd: float
    level: float
    power: float
    min_detectable_difference: float | None
    """Null for fewer than 2 prompts."""
    wished_gain: float | None
    num_prompts_for_wished_gain: int | None

    def sentence(self) -> str:
        """The plan in a line, for `--check`."""
        if self.min_detectable_difference is None:
            text = f"{self.num_prompts} prompts are too few to detect any difference"
        else:
            text = (
                f"{self.num_prompts} prompts detect a score difference of "
                f"{self.min_detectable_difference:.2g} with {percent(self.power, 0)} power (sd {self.sd:.2g})"
            )
        if self.num_prompts_for_wished_gain is None:
            return text
        return f"{text}; a gain of {self.wished_gain:.2g} takes {self.num_prompts_for_wished_gain} prompts"


def power_plan(num_prompts: int, settings: VerdictSettings, measured_sd: float | None = None) -> PowerPlan:
    """The plan for `num_prompts` prompts, with an earlier run's spread of differences where it is known."""
    sd = measured_sd if measured_sd else settings.expected_sd
    wished = settings.wished_gain
    return PowerPlan(
        num_prompts=num_prompts,
        sd=sd,
        level=settings.level,
        power=settings.power,
        min_detectable_difference=min_detectable_difference(num_prompts, sd, settings.level, settings.power),
        wished_gain=wished,
        num_prompts_for_wished_gain=prompts_for_gain(wished, sd, settings.level, settings.power)
        if wished
        else None,
    )


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


def predicted_power(gain: float, sd: float, num_prompts: int, level: float) -> float:
    """Chance that the interval of `num_prompts` paired differences lies wholly above 0."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().power(gain / sd, num_prompts, (1 - level) / 2, alternative="larger"))
