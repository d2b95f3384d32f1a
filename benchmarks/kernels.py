"""Our kernels beside llama.cpp's: operations per second of each alone, and passes of a model, on one core.

python -m benchmarks.kernels [--quick] [--json FILE]
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from benchmarks.harness import parser, quantised, report
from serving.engine import EngineSettings
from serving.engine.backend import Chunk
from serving.engine.llamacpp import kernels
from serving.engine.llamacpp.context import LlamaBackend
from serving.engine.llamacpp.model import LlamaModel
from tests.ggml_graphs import Ggml
from tests.unit.engine import test_kernels as made

ROWS = (1, 16, 256)
WIDTH, COLUMNS = 2048, 2048
ATTENTION = {
    "prompt_512_after_500": ((1, 9, 3, 512, 1024, 64), 500),
    "16_sequences_of_800": ((16, 9, 3, 1, 1024, 64), 800),
}
"""Sequences, heads, key heads, tokens, keys, numbers of a head; tokens before."""
SEQUENCES = (1, 2, 4, 7, 8, 12, 15, 16)
"""That are written at once, each of 100 tokens."""


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


def passes() -> Iterator[tuple[str, Callable[[], float]]]:
    """A token of each of several sequences, through the whole of the bundled model, whose weights no cache of
    the processor holds."""
    model = LlamaModel.open(str(quantised("q4_0")))
    settings = EngineSettings(context_tokens=1024)
    backend = LlamaBackend(model, settings, num_slots=max(SEQUENCES), threads=(1, 1))
    lengths = [0] * max(SEQUENCES)

    def write(slots: Iterable[int], count: int) -> None:
        for slot in slots:
            for start in range(0, count, 100):
                tokens = [
                    (31 * slot + 7 * index) % 30_000 + 100 for index in range(start, min(start + 100, count))
                ]
                backend.decode([Chunk(slot, lengths[slot], tokens, False, False)], None)
                lengths[slot] += len(tokens)

    def compute(count: int) -> float:
        began_s = time.perf_counter()
        backend.decode([Chunk(slot, lengths[slot], (7,), True, False) for slot in range(count)], None)
        seconds = time.perf_counter() - began_s
        for slot in range(count):
            backend.truncate(slot, lengths[slot])
        return seconds

    write(range(max(SEQUENCES)), 100)
    for count in SEQUENCES:
        yield f"{count}_sequences", functools.partial(compute, count)
    backend.truncate(0, 0)
    lengths[0] = 0
    write([0], 704)
    for slot in range(1, max(SEQUENCES)):
        backend.copy(0, slot)
        lengths[slot] = 704
    write(range(max(SEQUENCES)), 200)
    yield f"{max(SEQUENCES)}_sequences_with_704_of_904_in_common", functools.partial(compute, max(SEQUENCES))


def best_of(repeats: int, compute: Callable[[], float]) -> tuple[float, float]:
    """Seconds with our kernels and with llama.cpp's, in turns."""
    ours, originals = [], []
    for _ in range(repeats):
        ours.append(compute())
        with kernels.switched_off():
            originals.append(compute())
    return min(ours), min(originals)


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    chosen = options.parse_args()
    repeats = 3 if chosen.quick else 9
    ggml, random = Ggml(), np.random.default_rng(0)
    if not kernels.state().in_use:
        raise SystemExit(f"our kernels are not in use: {kernels.state().reason}")
    found: dict[str, float] = {}
    for name, operations, compute in (*products(random, ggml), *attentions(random, ggml)):
        ours_s, original_s = best_of(repeats, compute)
        found[f"gop_per_s_{name}_ours"] = operations / ours_s / 1e9
        found[f"gop_per_s_{name}_llama_cpp"] = operations / original_s / 1e9
        found[f"speedup_{name}"] = original_s / ours_s
    for name, compute in passes():
        ours_s, original_s = best_of(repeats, compute)
        found[f"pass_ms_{name}_ours"], found[f"pass_ms_{name}_llama_cpp"] = 1e3 * ours_s, 1e3 * original_s
        found[f"speedup_pass_{name}"] = original_s / ours_s
    report(found, {"repeats": repeats, "width": WIDTH, "columns": COLUMNS, "threads": 1}, chosen.json)


if __name__ == "__main__":
    main()
