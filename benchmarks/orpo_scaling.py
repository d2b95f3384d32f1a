"""Seconds of the packed ORPO step against tokens: 1x, 2x, 4x the pairs, and the lengths.

    python -m benchmarks.orpo_scaling PNG

Prints the series as JSON and draws them. Needs the pairs that benchmarks.orpo_step needs.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.orpo_step import MAX_PAIR_TOKENS, machine, model_dir, pairs_of, settings_of
from ray_jobs.orpo.tokens import PairTokens


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.orpo_scaling PNG")
    print(json.dumps({"scaling": scaling(Path(sys.argv[1])), "machine": machine()}, indent=2))


def scaling(path: Path) -> dict[str, Any]:
    """Seconds of a forward and backward pass against tokens, for more pairs and for longer ones."""
    import torch

    from ray_jobs.orpo.models import load_model
    from ray_jobs.orpo.packed_trainer import step_share
    from ray_jobs.orpo.packing import pack
    from ray_jobs.orpo.plan import StepPlan
    from ray_jobs.orpo.training import prepare_packed_step

    settings = settings_of(1)
    model = load_model(model_dir(), settings, torch.device("cpu")).train()
    prepare_packed_step(model, settings, MAX_PAIR_TOKENS)
    text = [token for pair in pairs_of("real") for token in (*pair.chosen, *pair.rejected)]

    def seconds(count: int, length: int) -> tuple[int, float]:
        ids = iter(text * 2)
        take = lambda n: tuple(next(ids) for _ in range(n))  # noqa: E731
        pairs = [
            PairTokens("", take(length // 5), take(2 * length // 5), take(2 * length // 5))
            for _ in range(count)
        ]
        packed, times = pack(pairs), []
        for _ in range(3):
            started = time.perf_counter()
            plan = StepPlan((tuple(range(count)),), count, packed.num_nll_tokens)
            step_share(model(packed=packed), plan, 0.1).backward()
            times.append(time.perf_counter() - started)
        return packed.num_tokens, min(times)

    seconds(2, 240)
    series = {
        "more pairs (480 tokens each)": [seconds(count, 480) for count in (2, 4, 8)],
        "longer pairs (4 of them)": [seconds(4, length) for length in (240, 480, 960)],
    }
    _plot(series, path)
    return {
        name: {"tokens": [t for t, _ in points], "seconds": [s for _, s in points]}
        for name, points in series.items()
    }


def _plot(series: dict[str, list[tuple[int, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
    for name, points in series.items():
        axes.plot(
            [tokens for tokens, _ in points], [seconds for _, seconds in points], marker="o", label=name
        )
    axes.set(xlabel="tokens computed", ylabel="seconds per step", xlim=(0, None), ylim=(0, None))
    axes.set_title("Cost of the packed step grows with the tokens")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
