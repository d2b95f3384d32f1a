"""Held-out preference accuracy on real pairs before and after a short training with the packed ORPO step.

    python -m benchmarks.orpo_learning [--steps N] [--pairs-per-step N]

On a CUDA GPU where there is one. Prints JSON. Needs the pairs that benchmarks.orpo_step needs.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from typing import Any

from benchmarks.orpo_step import machine, model_dir, read_pairs, settings_of, tokenized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs-per-step", type=int, default=8)
    given = parser.parse_args()
    learnt = learning(given.steps, given.pairs_per_step)
    print(json.dumps({"learning": learnt, "machine": machine()}, indent=2))


def learning(
    steps: int, pairs_per_step: int, max_pair_tokens: int = 384, num_heldout: int = 110
) -> dict[str, Any]:
    """Held-out preference accuracy before and after a short training; no instruction is on both sides."""
    import numpy as np

    from ray_jobs.orpo.evaluation import score_pairs
    from ray_jobs.orpo.models import load_tokenizer
    from ray_jobs.orpo.trainer import Job
    from ray_jobs.orpo.training import build_trainer
    from ray_jobs.verdict.statistics import mean_interval

    pairs = read_pairs()
    instructions = sorted({pair.prompt[-1].content for pair in pairs})
    random.Random(0).shuffle(instructions)
    heldout_instructions = set(instructions[: len(instructions) // 3])
    instruction_of = {pair.id: pair.prompt[-1].content for pair in pairs}
    train = tokenized(
        [p for p in pairs if instruction_of[p.id] not in heldout_instructions], max_pair_tokens
    ).pairs
    heldout = tokenized(
        [p for p in pairs if instruction_of[p.id] in heldout_instructions], max_pair_tokens
    ).pairs[:num_heldout]
    settings = settings_of(
        steps,
        pairs_per_step=pairs_per_step,
        max_pair_tokens=max_pair_tokens,
        max_batch_tokens=4096,
        learning_rate=5e-4,
        beta=3.0,
        warmup_share=0.1,
        logging_steps=5,
    )
    job = Job(settings, load_tokenizer(model_dir()), train, heldout, lambda *_: None, None)
    trainer, _ = build_trainer(job, model_dir(), tempfile.mkdtemp(prefix="orpo-learning-"))
    trainer.evaluate = lambda *_args, **_kwargs: {}
    device = next(trainer.model.parameters()).device
    score = lambda: score_pairs(trainer.model, heldout, max_batch_tokens=4096, device=device)  # noqa: E731
    before = score()
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    after = score()
    gains = [
        float(b) - float(a)
        for a, b in zip(before.chosen_P > before.rejected_P, after.chosen_P > after.rejected_P, strict=True)
    ]
    clusters = np.unique([instruction_of[pair.id] for pair in heldout], return_inverse=True)[
        1
    ]  # pairs of one are not independent
    interval = mean_interval(np.array(gains), level=0.95, num_resamples=4000, seed=0, clusters_B=clusters)
    return {
        "accuracy_before": before.figures(0.0)["heldout_accuracy"],
        "accuracy_after": after.figures(0.0)["heldout_accuracy"],
        "gain": statistics.fmean(gains),
        "gain_ci95": interval.ends,
        "margin_before": before.figures(0.0)["heldout_margin"],
        "margin_after": after.figures(0.0)["heldout_margin"],
        "nll_before": before.figures(0.0)["heldout_nll"],
        "nll_after": after.figures(0.0)["heldout_nll"],
        "heldout_pairs": len(heldout),
        "train_pairs_seen": steps * pairs_per_step,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
