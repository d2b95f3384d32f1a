"""Generated tokens per second: the engine against llama-cpp-python's own ways, same files and prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import (
    Contestant,
    Race,
    bundled_model,
    median_rate,
    median_ratio,
    own_cores,
    parser,
    quantised,
    questions,
    report,
    serve_rounds,
)

CONTEXT_TOKENS = 768
Counts = Mapping[str, float]

CONTESTANTS = [
    Contestant("loop_q4_1"),
    Contestant("loop_q4_0"),
    Contestant("pinned_pair_q4_0", num_processes=2),
    Contestant("engine_q4_0"),
    Contestant("engine_q4_0_pure"),
]


def loop(model: str, prompts: list[str], max_tokens: int, **options: Any) -> Callable[[], Counts]:
    """`Llama.create_chat_completion`, one prompt after another."""
    from llama_cpp import Llama

    llama = Llama(model, n_ctx=CONTEXT_TOKENS, verbose=False, **options)

    def work() -> Counts:
        count = 0
        for prompt in prompts:
            reply = llama.create_chat_completion(
                [{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0.0
            )
            count += reply["usage"]["completion_tokens"]
        return {"tokens": count}

    return work


def engine(model: str, prompts: list[str], max_tokens: int, slots: int) -> Callable[[], Counts]:
    """All prompts at once to an engine that owns every core, a lane on each."""
    from serving.engine import Engine, EngineSettings, Request, Sampling

    cores = os.cpu_count() or 1
    settings = EngineSettings(cores=cores, lanes=cores, slots=slots, context_tokens=CONTEXT_TOKENS)
    opened = Engine.open(model, settings, own_cores(cores))
    sampling = Sampling(max_tokens=max_tokens)

    def work() -> Counts:
        before = opened.metrics()
        rendered = [opened.chat.render([{"role": "user", "content": prompt}]) for prompt in prompts]
        results = opened.generate([Request(str(i), prompt, sampling) for i, prompt in enumerate(rendered)])
        after = opened.metrics()
        return {
            "tokens": sum(result.num_answer_tokens for result in results),
            "prompt_tokens": sum(result.num_prompt_tokens for result in results),
            "cached_tokens": sum(result.num_cached_tokens for result in results),
            "compute_s": after.compute_s - before.compute_s,
            "busy_s": after.busy_s - before.busy_s,
        }

    return work


def worker(name: str, rank: int, prompts: list[str], max_tokens: int, slots: int) -> None:
    if name == "pinned_pair_q4_0":
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {rank})
        work = loop(str(quantised("q4_0")), prompts[rank::2], max_tokens, n_threads=1, n_threads_batch=1)
    elif name.startswith("loop"):
        model = quantised("q4_0") if name == "loop_q4_0" else bundled_model()
        work = loop(str(model), prompts, max_tokens)
    else:
        model = quantised("q4_0" if name == "engine_q4_0" else "q4_0-pure")
        work = engine(str(model), prompts, max_tokens, slots)
    serve_rounds(work)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--prompts", type=int)
    options.add_argument("--max-tokens", type=int, default=128)
    options.add_argument("--slots", type=int, default=24, help="slots of each lane")
    options.add_argument("--repeats", type=int)
    options.add_argument("--only", help="comma-separated contestants")
    chosen = options.parse_args()
    num_prompts = chosen.prompts or (48 if chosen.quick else 144)
    repeats = chosen.repeats or (3 if chosen.quick else 5)
    if chosen.worker:
        worker(chosen.worker, chosen.rank, questions(num_prompts), chosen.max_tokens, chosen.slots)
        return
    contestants = [each for each in CONTESTANTS if not chosen.only or each.name in chosen.only.split(",")]
    for recipe in ("q4_0", "q4_0-pure"):
        quantised(recipe)
    passed_on = [
        "--prompts",
        str(num_prompts),
        "--max-tokens",
        str(chosen.max_tokens),
        "--slots",
        str(chosen.slots),
    ]
    race = Race("benchmarks.generation", contestants, passed_on)
    rounds = race.run(repeats)
    race.close()
    work = {"model": bundled_model().name, "num_prompts": num_prompts, "max_tokens": chosen.max_tokens,
            "slots_per_lane": chosen.slots, "repeats": repeats, "rounds": rounds}  # fmt: skip
    report(figures(rounds), work, chosen.json)


def figures(rounds: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    found = {f"tokens_per_s_{name}": median_rate(each, "tokens") for name, each in rounds.items()}
    for figure, ours, theirs in (
        ("speedup_vs_loop", "engine_q4_0", "loop_q4_0"),
        ("speedup_vs_pinned_pair", "engine_q4_0", "pinned_pair_q4_0"),
        # Q4_0 with a Q8_0 embedding is the recipe: quantising the embedding too is measured beside it, but it
        # changes a quarter of the greedy tokens (`python -m serving.engine.calibrate`).
        ("speedup_recipe_vs_bundled_loop", "engine_q4_0", "loop_q4_1"),
    ):
        if ours in rounds and theirs in rounds:
            found[figure] = median_ratio(rounds[ours], rounds[theirs], "tokens")
    for name, each in rounds.items():
        if "busy_s" in each[0]:
            found[f"share_in_decode_{name}"] = sum(r["compute_s"] for r in each) / sum(
                r["busy_s"] for r in each
            )
    return found


if __name__ == "__main__":
    main()
