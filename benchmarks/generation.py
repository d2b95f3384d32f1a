"""Generated tokens per second: the engine against other ways to run a GGUF on a CPU.

python -m benchmarks.generation [--quick] [--shape llama-3.2-1b] [--llama-server PATH] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
from importlib.util import find_spec
from pathlib import Path

from benchmarks import generation_ways as ways
from benchmarks.harness import (
    Contestant,
    Race,
    Rounds,
    bundled_model,
    median_rate,
    median_ratio,
    parser,
    quantised,
    questions,
    report,
    serve_rounds,
)
from benchmarks.roofline import Work, roofline

SEQUENTIAL_SHARE = 6
"""Ways that do one prompt after another do every sixth: their rate is the same however many follow."""
DEFAULT_SLOTS = {"llama_cpp": 32, "openvino": 256}
RATIOS = (
    ("speedup_vs_loop", "engine_q4_0", "loop_q4_0"),
    ("speedup_vs_pinned_pair", "engine_q4_0", "pinned_pair_q4_0"),
    ("speedup_vs_llama_server", "engine_q4_0", "llama_server_q4_0"),
    ("speedup_recipe_vs_bundled_loop", "engine_q4_0", "loop_q4_1"),
    ("kernels_vs_llama_cpp_kernels", "engine_q4_0", "engine_q4_0_llama_cpp_kernels"),
    ("openvino_vs_bare", "engine_openvino_q4_0", "bare_openvino_q4_0"),
    ("openvino_vs_llama_cpp", "engine_openvino_q4_0", "engine_q4_0"),
    ("openvino_speedup_vs_loop", "engine_openvino_q4_0", "loop_q4_0"),
)


def contestants(shape: str, llama_server: Path | None) -> list[Contestant]:
    """The Q4_1 file is the bundled one."""
    found = [
        Contestant("loop_q4_0"),
        Contestant("pinned_pair_q4_0", num_processes=2),
        Contestant("engine_q4_0", our_kernels=True),
        Contestant("engine_q4_0_llama_cpp_kernels"),
    ]
    if shape == "smollm2":
        found.append(Contestant("loop_q4_1"))
    if llama_server is not None:
        found.append(Contestant("llama_server_q4_0"))
    if find_spec("openvino_genai") is not None:
        found += [Contestant("bare_openvino_q4_0"), Contestant("engine_openvino_q4_0")]
    return found


def recipe_of(name: str) -> str:
    """The quantisation that a contestant runs; ours is Q4_0, what runs export."""
    return "q4_1" if name == "loop_q4_1" else "q4_0"


def model_file(shape: str, recipe: str) -> Path:
    if shape == "smollm2":
        return bundled_model() if recipe == "q4_1" else quantised(recipe)
    from benchmarks.shapes import random_1b

    return random_1b(recipe)


def open_way(
    name: str, model: Path, rank: int, max_tokens: int, slots: int, program: Path | None
) -> ways.Round:
    """`slots` of each lane with llama.cpp."""
    if name.startswith("loop"):
        return ways.loop(model, max_tokens)
    if name.startswith("pinned"):
        return ways.pinned_loop(model, max_tokens, rank)
    if name.startswith("llama_server"):
        assert program is not None
        return ways.llama_server(program, model, max_tokens)
    if name.startswith("bare_openvino"):
        return ways.bare_openvino(model, max_tokens)
    if name.startswith("engine_openvino"):
        return ways.engine(model, max_tokens, DEFAULT_SLOTS["openvino"], "openvino")
    return ways.engine(model, max_tokens, slots, "llama_cpp")


def share_of(name: str, rank: int) -> slice:
    """Which of a round's prompts a worker does."""
    if name.startswith("pinned"):
        return slice(SEQUENTIAL_SHARE * rank, None, SEQUENTIAL_SHARE * 2)
    return slice(0, None, SEQUENTIAL_SHARE if name.startswith("loop") else 1)


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--shape", choices=("smollm2", "llama-3.2-1b"), default="smollm2")
    options.add_argument("--llama-server", type=Path, help="path to llama.cpp's server")
    options.add_argument("--prompts", type=int)
    options.add_argument("--max-tokens", type=int, default=128)
    options.add_argument("--slots", type=int, default=DEFAULT_SLOTS["llama_cpp"], help="of each lane")
    options.add_argument("--repeats", type=int)
    options.add_argument("--only", help="comma-separated contestants")
    chosen = options.parse_args()
    num_prompts = chosen.prompts or (48 if chosen.quick else 144)
    repeats = chosen.repeats or (3 if chosen.quick else 5)
    if chosen.worker:
        model = model_file(chosen.shape, recipe_of(chosen.worker))
        work = open_way(
            chosen.worker, model, chosen.rank, chosen.max_tokens, chosen.slots, chosen.llama_server
        )
        share = share_of(chosen.worker, chosen.rank)
        serve_rounds(lambda turn: work(questions(num_prompts, turn * num_prompts)[share]))
        return
    entered = [
        each
        for each in contestants(chosen.shape, chosen.llama_server)
        if not chosen.only or each.name in chosen.only.split(",")
    ]
    for each in entered:
        model_file(chosen.shape, recipe_of(each.name))
    passed_on = [f"--{name}={value}" for name, value in (
        ("shape", chosen.shape), ("prompts", num_prompts), ("max-tokens", chosen.max_tokens),
        ("slots", chosen.slots), ("llama-server", chosen.llama_server)) if value is not None]  # fmt: skip
    model = model_file(chosen.shape, "q4_0")
    race = Race("benchmarks.generation", entered, passed_on)
    rounds = race.run(repeats)
    race.close()
    work_done = {"model": model.name, "num_prompts": num_prompts, "max_tokens": chosen.max_tokens,
                 "slots_per_lane": chosen.slots, "repeats": repeats, "rounds": rounds}  # fmt: skip
    report(figures(rounds) | shares_of_roofline(rounds, model, chosen.slots), work_done, chosen.json)


def figures(rounds: Rounds) -> dict[str, float]:
    """Rates, ratios of paired rounds, and `share_of_decode_limit`: the rate as a share of what it would be if
    nothing but `llama_decode` took time."""
    found = {f"tokens_per_s_{name}": median_rate(each, "tokens") for name, each in rounds.items()}
    for figure, ours, theirs in RATIOS:
        if ours in rounds and theirs in rounds:
            found[figure] = median_ratio(rounds[ours], rounds[theirs], "tokens")
    for name, each in rounds.items():
        if "busy_s" in each[0]:
            found[f"share_of_decode_limit_{name}"] = sum(one["compute_s"] for one in each) / sum(
                one["busy_s"] for one in each
            )
    if "share_of_decode_limit_engine_q4_0" in found:
        found["share_of_decode_limit"] = found["share_of_decode_limit_engine_q4_0"]
    return found


def shares_of_roofline(rounds: Rounds, model: Path, slots: int) -> dict[str, float]:
    """How near the engines' rounds came to what the processor could do at best; see `benchmarks.roofline`."""
    limits = roofline(model, os.cpu_count() or 1)
    found = {"matrix_gflops": limits.operations_per_s / 1e9, "copy_gb_per_s": limits.bytes_per_s / 1e9}
    for name, batch in (("engine_q4_0", slots), ("engine_openvino_q4_0", DEFAULT_SLOTS["openvino"])):
        shares = [
            limits.seconds(Work(one["prompt_tokens"] - one["cached_tokens"], one["tokens"], batch))
            / one["seconds"]
            for one in rounds.get(name, ())
        ]
        if shares:
            found[f"share_of_roofline_{name}"] = statistics.median(shares)
    return found


if __name__ == "__main__":
    main()
