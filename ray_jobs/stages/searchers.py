"""Ray Tune's own ways to draw trials, of which as many run at once as the config says now.

Tune (2.60) goes on with the number that a search began with: it lies in the state that is read again.
"""

from typing import Any

from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator

_wished: int | None = None


def run_at_once(wished: int) -> None:
    """How many trials a search that is taken up from here on starts at once; 0: no limit."""
    global _wished
    _wished = wished


class RandomTrials(BasicVariantGenerator):
    """Random values and points of a grid."""

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if _wished is not None:
            self.max_concurrent = _wished


class LimitedTrials(ConcurrencyLimiter):
    """Another search algorithm, held back."""

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if _wished:
            self.max_concurrent = _wished
