"""What a training reports."""

import math
from dataclasses import asdict, dataclass

import torch


class TrainingDiverged(Exception):
    """The loss is no longer finite, or exploded; the weights of this trial are of no use."""


@dataclass(frozen=True)
class Metrics:
    """One evaluation. Held-out figures are over all held-out pairs, each pair weighing the same;
    train figures are means over the steps since the last evaluation. Log-probabilities are means per
    answer token, in nats. None means that there is no such figure (yet)."""

    step: int
    epoch: float
    heldout_loss: float
    heldout_nll: float
    heldout_accuracy: float
    """Share of held-out pairs whose chosen answer has the higher mean log-probability."""
    heldout_margin: float
    """Mean of chosen minus rejected mean log-probability (TRL's reward margin divided by beta)."""
    heldout_log_odds: float
    heldout_pairs: int
    train_loss: float | None = None
    train_nll: float | None = None
    train_accuracy: float | None = None
    train_margin: float | None = None
    train_log_odds: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    """Prompt + chosen and prompt + rejected tokens, unpadded, of all workers, per second of training."""
    padding_share: float | None = None
    """Share of the computed tokens that are padding."""
    mfu: float | None = None
    """Model FLOP/s (without recomputation) over the measured matrix rate of the device."""
    peak_memory_bytes: int | None = None
    """Largest memory use of this worker so far: of the process on CPU, of tensors on a GPU."""
    train_pairs: int | None = None
    unused_pairs: int | None = None
    """Training and held-out pairs that are not used; the log says why."""
    cut_prompts: int | None = None
    """Pairs, training and held-out, whose prompt was cut to fit."""

    def as_row(self) -> dict[str, float | int]:
        """The figures that there are, all finite."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_finite(figures: dict[str, float], where: str) -> None:
    """Raises TrainingDiverged if any figure is NaN or infinite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise TrainingDiverged(f"{where}: {', '.join(bad)} not finite")


def peak_memory_bytes(device: torch.device) -> int | None:
    """High-water mark of tensors on a GPU, of this process on CPU; None where the system keeps none."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_not_exploded(loss: float, first_loss: float, max_ratio: float, where: str) -> None:
    """Raises TrainingDiverged if the loss is more than `max_ratio` times the first step's."""
    if loss > max_ratio * first_loss:
        raise TrainingDiverged(
            f"{where}: loss {loss:.3g} is over {max_ratio:g} times the first step's {first_loss:.3g}"
        )
