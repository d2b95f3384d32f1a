"""Our kernels beside llama.cpp's, each alone: operations per second on one core.

python -m benchmarks.kernels [--quick] [--json FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from benchmarks.harness import parser, report
from serving.engine.llamacpp import kernels
from tests.ggml_graphs import Ggml
from tests.unit.engine import test_kernels as made

ROWS = (1, 16, 256)
WIDTH, COLUMNS = 2048, 2048
ATTENTION = {
    "prompt_512_after_500": ((1, 9, 3, 512, 1024, 64), 500),
    "16_sequences_of_800": ((16, 9, 3, 1, 1024, 64), 800),
}
"""Sequences, heads, key heads, tokens, keys, numbers of a head; tokens before."""


def packed(names: tuple[str, str], weights: Any, rows_of: Callable[[int], tuple[Any, Any]]) -> Iterator[Any]:
    """Products with weights that llama.cpp repacks: of several rows, and of one."""
    for count in ROWS:
        single, several = rows_of(max(4, count))
        name, rows = (names[1], single[0]) if count == 1 else (names[0], several)

        def compute(name: str = name, rows: Any = rows, count: int = count) -> float:
            began_s = time.perf_counter()
            made.packed_product(name, weights, rows, count, COLUMNS, WIDTH)
            return time.perf_counter() - began_s

        yield count, compute


def products(random: Any, ggml: Ggml) -> Iterator[tuple[str, float, Callable[[], float]]]:
    """Name, operations, and what computes and gives its seconds."""

    def q8_0(count: int) -> tuple[Any, Any]:
        rows = made.rows_of(random, count, WIDTH)
        return rows, made.packed_rows(rows)

    def q8_k(count: int) -> tuple[Any, Any]:
        return made.q8_k_rows(random, count, WIDTH)[:2]

    weights, _ = made.packed_weights(random, COLUMNS, WIDTH)
    for count, compute in packed(("serving_q4_0_rows", "serving_q4_0_row"), weights, q8_0):
        yield f"q4_0_{count}_rows", 2.0 * count * COLUMNS * WIDTH, compute
    weights, _ = made.q4_k_weights(random, COLUMNS, WIDTH)
    for count, compute in packed(("serving_q4_k_rows", "serving_q4_k_row"), weights, q8_k):
        yield f"q4_k_{count}_rows", 2.0 * count * COLUMNS * WIDTH, compute
    for kind in (made.q6_k_weights, made.q8_0_weights):
        weights, numbers = kind(random, 4 * COLUMNS)
        for count in ROWS:
            rows = random.normal(0, 1, (count, numbers.shape[1])).astype(np.float32)
            yield (
                f"{kind.__name__.removesuffix('_weights')}_{count}_rows",
                2.0 * count * numbers.size,
                lambda weights=weights, rows=rows: ggml.seconds(lambda: ggml.product(weights, rows)),
            )


def attentions(random: Any, ggml: Ggml) -> Iterator[tuple[str, float, Callable[[], float]]]:
    for name, (shape, past) in ATTENTION.items():
        queries, keys, values = made.inputs(random, *shape)
        sequences, heads, _, tokens, num_keys, head = shape
        mask = made.causal(sequences, tokens, num_keys, [past] * sequences)
        pairs = sequences * heads * sum(past + token + 1 for token in range(tokens))
        arguments = (queries, keys, values, mask)
        yield (
            f"attention_{name}",
            4.0 * head * pairs,
            lambda arguments=arguments: ggml.seconds(lambda: ggml.attention(*arguments)),
        )


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    chosen = options.parse_args()
    repeats = 3 if chosen.quick else 9
    ggml, random = Ggml(), np.random.default_rng(0)
    if not kernels.state().in_use:
        raise SystemExit(f"our kernels are not in use: {kernels.state().reason}")
    found: dict[str, float] = {}
    for name, operations, compute in (*products(random, ggml), *attentions(random, ggml)):
        best = {"ours": float("inf"), "llama_cpp": float("inf")}
        for _ in range(repeats):
            for whose in best:
                with nullcontext() if whose == "ours" else kernels.switched_off():
                    best[whose] = min(best[whose], compute())
        for whose, seconds in best.items():
            found[f"gop_per_s_{name}_{whose}"] = operations / seconds / 1e9
        found[f"speedup_{name}"] = best["llama_cpp"] / best["ours"]
    report(found, {"repeats": repeats, "width": WIDTH, "columns": COLUMNS, "threads": 1}, chosen.json)


if __name__ == "__main__":
    main()
