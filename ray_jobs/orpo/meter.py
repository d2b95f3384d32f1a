"""Running figures of a training, summed up for log lines and evaluations."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BatchFigures:
    """What one worker's batch, or a step of all workers, contributes.

    `share` is its part of an optimiser step; loss, nll, accuracy, margin and log_odds are means over
    it. Tokens are counted as prompt + chosen and prompt + rejected (`num_tokens`), and as computed.
    """

    share: float
    loss: float
    nll: float
    accuracy: float
    margin: float
    log_odds: float
    num_tokens: int
    num_computed: int
    num_padding: int
    flops: float


MEANS = ("loss", "nll", "accuracy", "margin", "log_odds")
COUNTS = ("share", "num_tokens", "num_computed", "num_padding", "flops")


@dataclass
class Window:
    """Sums since the last reading."""

    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, figures: BatchFigures) -> None:
        for name in COUNTS:
            self.sums[name] = self.sums.get(name, 0.0) + getattr(figures, name)
        for name in MEANS:
            self.sums[name] = self.sums.get(name, 0.0) + figures.share * getattr(figures, name)

    def read(self, matrix_rate: float) -> dict[str, float]:
        """Means and rates since the last reading, empty if there was no step; starts anew."""
        sums, seconds = self.sums, self.seconds
        self.sums, self.seconds = {}, 0.0
        if not sums:
            return {}
        figures = {f"train_{name}": sums[name] / sums["share"] for name in MEANS}
        figures["padding_share"] = sums["num_padding"] / sums["num_computed"]
        if seconds > 0:
            figures["tokens_per_s"] = sums["num_tokens"] / seconds
            if sums["flops"]:
                figures["mfu"] = sums["flops"] / seconds / matrix_rate
        return figures


class TrainMeter:
    """Two windows over the same steps: one read by log lines, one by evaluations.

    `matrix_rate` is in operations per second, over all workers' devices.
    """

    def __init__(self, matrix_rate: float) -> None:
        self.matrix_rate = matrix_rate
        self._log, self._evaluation = Window(), Window()
        self._started = 0.0

    def start_step(self) -> None:
        self._started = time.perf_counter()

    def end_step(self) -> None:
        seconds = time.perf_counter() - self._started
        self._log.seconds += seconds
        self._evaluation.seconds += seconds

    def add(self, figures: BatchFigures) -> None:
        self._log.add(figures)
        self._evaluation.add(figures)

    def read_log(self) -> dict[str, float]:
        return self._log.read(self.matrix_rate)

    def read_evaluation(self) -> dict[str, float]:
        return self._evaluation.read(self.matrix_rate)
