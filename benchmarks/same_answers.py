"""How many greedy answers stay the same when others are computed beside them, and what that costs.

All prompts are answered together, then in an engine of its own all in the order reversed, then in another
one after the other: freely batched, and in `deterministic` mode, in turns. llama.cpp rounds differently for
other shapes of a batch, so that two tokens that are nearly as likely can change places; from there on the
answers differ. Prints the shares of equal answers, and tokens per second of all at once and of one by one.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from itertools import takewhile

from benchmarks.harness import own_cores, parser, quantised, questions, report
from serving.engine import Engine, EngineSettings, Request, Result, Sampling


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--prompts", type=int)
    options.add_argument("--max-tokens", type=int, default=64)
    chosen = options.parse_args()
    num_prompts = chosen.prompts or (24 if chosen.quick else 96)
    rounds = 2 if chosen.quick else 5
    texts, model = questions(num_prompts), quantised("q4_0")
    cores = os.cpu_count() or 1
    together = EngineSettings(cores=cores, lanes=cores, slots=24, context_tokens=768)
    figures: dict[str, float] = {}
    rates: dict[str, list[float]] = {"batched": [], "deterministic": []}
    for number in range(rounds):
        for name, each in rates.items():
            settings = together.model_copy(update={"deterministic": name == "deterministic"})
            with Engine.open(model, settings, *own_cores(cores)) as engine:
                at_once, rate = timed(engine, [texts], chosen.max_tokens)
            each.append(rate)
            if number > 0:
                continue
            with Engine.open(model, settings, *own_cores(cores)) as engine:
                reverse, _ = timed(engine, [texts[::-1]], chosen.max_tokens)
            with Engine.open(model, settings, *own_cores(cores)) as engine:
                alone, rate = timed(engine, [[text] for text in texts], chosen.max_tokens)
            figures |= compared(f"{name}_alone_vs_together", alone, at_once)
            figures |= compared(f"{name}_reversed_vs_together", reverse[::-1], at_once)
            figures[f"tokens_per_s_{name}_alone"] = rate
    figures |= {f"tokens_per_s_{name}": statistics.median(each) for name, each in rates.items()}
    ratios = [exact / free for free, exact in zip(rates["batched"], rates["deterministic"], strict=True)]
    figures["deterministic_vs_batched"] = statistics.median(ratios)
    work = {"prompts": num_prompts, "max_tokens": chosen.max_tokens, "rounds": rounds}
    report(figures, work, chosen.json)


def timed(engine: Engine, groups: Sequence[Sequence[str]], max_tokens: int) -> tuple[list[Result], float]:
    """The answers to one group after the other, and how many tokens of them came a second."""
    began_s = time.perf_counter()
    found = [result for group in groups for result in answers(engine, group, max_tokens)]
    seconds = time.perf_counter() - began_s
    return found, sum(result.num_answer_tokens for result in found) / seconds


def answers(engine: Engine, texts: Sequence[str], max_tokens: int) -> list[Result]:
    prompts = [engine.chat.render([{"role": "user", "content": text}]) for text in texts]
    sampling = Sampling(max_tokens=max_tokens)
    return engine.generate([Request(str(i), prompt, sampling) for i, prompt in enumerate(prompts)])


def compared(name: str, first: Sequence[Result], second: Sequence[Result]) -> dict[str, float]:
    """Shares of equal answers, and of their tokens before the first that differs."""
    pairs = list(zip(first, second, strict=True))
    kept = [
        sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(a.tokens, b.tokens, strict=False)))
        for a, b in pairs
    ]
    return {
        f"equal_answers_{name}": statistics.mean(a.tokens == b.tokens for a, b in pairs),
        f"equal_tokens_{name}": sum(kept) / sum(max(len(a.tokens), 1) for a, _ in pairs),
    }


if __name__ == "__main__":
    main()
