"""The guards of a decision: limits on what the judge's scores do not show."""

from collections.abc import Callable
from dataclasses import dataclass

from ray_jobs.verdict.measures import AnswerMeasures
from ray_jobs.verdict.settings import Guards
from ray_jobs.verdict.shares import PairedShares

_ROUNDING = 1e-9


@dataclass(frozen=True)
class GuardResult:
    """One guard: `held` is null where there was nothing to measure."""

    name: str
    limit: float
    value: float | None
    held: bool | None

    def broken(self) -> str:
        """The clause of a reason that names this guard."""
        found = "could not be measured" if self.value is None else f"is {self.value:.3g}"
        return f"guard {self.name}: {_QUANTITIES[self.name]} {found}, the limit is {self.limit:.3g}"


_QUANTITIES = {
    "program_accuracy_max_drop": "the drop of program-checked accuracy",
    "program_accuracy_min_gain": "the gain of program-checked accuracy",
    "refusal_rate_max_rise": "the rise of the refusal rate",
    "courting_rate_max_rise": "the rise of the share of answers that court the judge",
    "length_ratio_max": "the ratio of mean answer lengths",
    "tokens_per_second_min_ratio": "the ratio of tokens per second",
}


def check_guards(
    guards: Guards, program: PairedShares | None, base: AnswerMeasures, candidate: AnswerMeasures
) -> list[GuardResult]:
    """Every guard that is switched on, in the order of the settings.

    A guard with a `min` in its name asks for something, so it does not hold where nothing was measured;
    a `max` that cannot be measured (no prompt has a check, say) stays open.
    """
    gain = program.difference if program else None
    drop = -gain if gain is not None else None
    refusals = _both(base.refusal_rate, candidate.refusal_rate, _rise)
    courting = _both(base.courting_rate, candidate.courting_rate, _rise)
    length = _both(base.mean_characters, candidate.mean_characters, _ratio)
    speed = _both(base.tokens_per_second, candidate.tokens_per_second, _ratio)
    rows = [
        ("program_accuracy_max_drop", guards.program_accuracy_max_drop, drop),
        ("program_accuracy_min_gain", guards.program_accuracy_min_gain, gain),
        ("refusal_rate_max_rise", guards.refusal_rate_max_rise, refusals),
        ("courting_rate_max_rise", guards.courting_rate_max_rise, courting),
        ("length_ratio_max", guards.length_ratio_max, length),
        ("tokens_per_second_min_ratio", guards.tokens_per_second_min_ratio, speed),
    ]
    return [
        GuardResult(name, limit, value, _held(name, limit, value))
        for name, limit, value in rows
        if limit is not None
    ]


def _held(name: str, limit: float, value: float | None) -> bool | None:
    lower_limit = "_min_" in name
    if value is None:
        return False if lower_limit else None
    return value >= limit - _ROUNDING if lower_limit else value <= limit + _ROUNDING


def _both(
    base: float | None, candidate: float | None, of: Callable[[float, float], float | None]
) -> float | None:
    return None if base is None or candidate is None else of(base, candidate)


def _rise(base: float, candidate: float) -> float:
    return candidate - base


def _ratio(base: float, candidate: float) -> float | None:
    return candidate / base if base > 0 else None
