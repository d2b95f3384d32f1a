"""What a search says while it runs: a line an evaluation, a line an ended trial."""

import logging
import math
import time
from typing import Any

import ray.tune

from ray_jobs.logs import duration, sparkline
from ray_jobs.orpo.settings import MANY_UNUSED

log = logging.getLogger(__name__)


class TrialLog(ray.tune.Callback):
    """Logs evaluations and ended trials."""

    _unused: frozenset[int] = frozenset()
    """Numbers of pairs that have been told of; on the class, for searches that an older version began."""

    def __init__(self, num_trials: int, num_steps: int) -> None:
        self._num_trials, self._num_steps = num_trials, num_steps
        self._started, self._ended = time.monotonic(), 0
        self._steps: dict[str, int] = {}
        self._nlls: dict[str, list[float]] = {}
        self._settings: dict[str, Any] = {}

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._say_what_was_taken_over(trial, result.get("taken_over"))
        self._say_what_is_unused(trial, result)
        self._steps[trial.trial_id] = int(result.get("step", 0))
        nlls = self._nlls.setdefault(trial.trial_id, [])
        nlls.append(float(result.get("heldout_nll", math.nan)))
        log.info(
            "tune     %s step %s/%d · held-out accuracy %.3f, nll %.3f %s · %.0f tokens/s",
            short_name(trial.trial_id),
            result.get("step"),
            self._num_steps,
            result.get("heldout_accuracy", math.nan),
            nlls[-1],
            sparkline(nlls),
            result.get("tokens_per_s", math.nan),
        )

    def _say_what_was_taken_over(self, trial: Any, donor: str | None) -> None:
        before = self._settings.setdefault(trial.trial_id, trial.config)
        if donor is None or before == trial.config:
            return
        self._settings[trial.trial_id] = trial.config
        changed = ", ".join(
            f"{name}={value}" for name, value in trial.config.items() if value != before.get(name)
        )
        name = short_name(trial.trial_id)
        log.info("tune     %s goes on from %s with %s", name, short_name(donor), changed)

    def _say_what_is_unused(self, trial: Any, result: dict[str, Any]) -> None:
        """Trials have the same pairs: what is said of one is not said of the next."""
        unused = int(result.get("unused_pairs", 0))
        pairs = unused + int(result.get("train_pairs", 0)) + int(result.get("heldout_pairs", 0))
        if unused <= MANY_UNUSED * pairs or unused in self._unused:
            return
        self._unused |= {unused}
        name = short_name(trial.trial_id)
        log.warning("tune     %s does not use %d of %d pairs; its log says why", name, unused, pairs)

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        self._end(trial, "done")

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        self._end(trial, "FAILED")

    def _end(self, trial: Any, how: str) -> None:
        self._ended += 1
        self._steps[trial.trial_id] = self._num_steps
        left = self._seconds_left()
        note = f" · about {duration(left)} left" if left else ""
        name = short_name(trial.trial_id)
        log.info("tune     %s %s · %d of %d trials%s", name, how, self._ended, self._num_trials, note)

    def _seconds_left(self) -> float:
        """By the steps of all trials, those that run included; 0 when all have ended."""
        share = sum(self._steps.values()) / (self._num_trials * self._num_steps)
        return (time.monotonic() - self._started) * max(0.0, 1 - share) / share


def short_name(trial_id: str) -> str:
    return f"trial {trial_id.rsplit('_', 1)[-1].lstrip('0') or '0'}"
