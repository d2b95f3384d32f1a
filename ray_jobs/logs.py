"""Logging, configured once at the entry of a command, and progress of long work."""

import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence


def configure(verbose: bool = False) -> None:
    """One line an event on standard error; libraries only from WARNING up."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    # Libraries announce their coming changes to us, who pin them; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning)
    level = logging.DEBUG if verbose else logging.INFO
    for name in ("ray_jobs", "serving"):
        logging.getLogger(name).setLevel(level)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The last `width` finite values as bars, from the lowest to the highest of them."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    top = len(BARS) - 1
    return "".join(BARS[round((value - low) / (high - low) * top) if high > low else 0] for value in shown)


BARS = "▁▂▃▄▅▆▇█"
LEAST_S = 1.0
"""What comes within it says nothing of a rate: blocks that are finished together arrive together."""


class Progress:
    """Logs how far counted work is: done of total, rate, time left; at most a line every `every_s`.

    What it takes until work begins, as to load a model, is no part of the rate: work has begun when `begin`
    is called, else with the first result. `quiet_s`: after so long without a line, `alive` writes one.
    """

    def __init__(
        self,
        log: logging.Logger,
        stage: str,
        what: str,
        total: int,
        *,
        every_s: float = 5.0,
        quiet_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._stage, self._what, self._total = log, stage, what, total
        self._every_s, self._quiet_s, self._clock = every_s, quiet_s, clock
        self._started = self._last = clock()
        self._done = 0
        self._begun: tuple[float, int] | None = None
        """When, and how much was done by then."""

    def begin(self, ago_s: float = 0.0) -> None:
        """Work began so many seconds ago. Only the first time counts. From any thread."""
        if self._begun is None:
            self._begun = max(self._started, self._clock() - ago_s), self._done

    def add(self, count: int, note: str = "") -> None:
        """Counts `count` more as done, and logs when it is time or all is done."""
        self._done += count
        now = self._clock()
        if self._begun is None:
            self._begun = now, self._done
        if self._done >= self._total or now - self._last >= self._every_s:
            self._last = now
            self._log.info("%-8s %s", self._stage, self.line(note))

    def alive(self, note: str) -> None:
        """Logs that work goes on, if nothing has been said for `quiet_s`. From any thread."""
        now = self._clock()
        if self._done < self._total and now - self._last >= self._quiet_s:
            self._last = now
            self._log.info("%-8s %s", self._stage, self.line(note))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start; above 0."""
        return max(self._clock() - self._started, 1e-9)

    @property
    def working_s(self) -> float:
        """Seconds since `begin`, else since the start, as the first result took some of them; above 0."""
        began, before = self._begun or (self._started, 0)
        return max(self._clock() - (self._started if before else began), 1e-9)

    def line(self, note: str = "") -> str:
        parts = [f"{self._done}/{self._total} {self._what}"]
        if rate := self._rate():
            parts.append(f"{rate:.1f} {self._what}/s")
            if self._done < self._total:
                parts.append(f"{duration((self._total - self._done) / rate)} left")
        return " · ".join(parts + ([note] if note else []))

    def _rate(self) -> float:
        """0 as long as nothing can be said; of all the time where all came at once."""
        began, before = self._begun or (self._started, 0)
        if self._clock() - began < LEAST_S:
            if self._done < self._total:
                return 0.0
            began, before = self._started, 0
        seconds = self._clock() - began
        return (self._done - before) / seconds if seconds > 0 else 0.0
