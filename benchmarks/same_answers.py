"""How many greedy answers stay the same when others are computed beside them.

Every prompt is answered alone, then all together, then all together in the order reversed, and all once more
in `deterministic` mode. llama.cpp's kernels round differently for other batch sizes, so that two tokens that
are nearly as likely can change places; from there on the answers differ.
"""

from __future__ import annotations

import os
import statistics
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
    texts, model = questions(num_prompts), quantised("q4_0")
    cores = os.cpu_count() or 1
    together = EngineSettings(cores=cores, lanes=cores, slots=24, context_tokens=768)
    exact = together.model_copy(update={"deterministic": True})
    figures: dict[str, float] = {}
    with Engine.open(model, exact, *own_cores(cores)) as engine:
        alone = [answers(engine, [text], chosen.max_tokens)[0] for text in texts]
        figures |= compared("deterministic", alone, answers(engine, texts, chosen.max_tokens))
    with Engine.open(model, together, *own_cores(cores)) as engine:
        batched = answers(engine, texts, chosen.max_tokens)
        figures |= compared("together", alone, batched)
        reverse = answers(engine, texts[::-1], chosen.max_tokens)[::-1]
        figures |= compared("reversed_vs_together", batched, reverse)
    report(figures, {"prompts": num_prompts, "max_tokens": chosen.max_tokens}, chosen.json)


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
