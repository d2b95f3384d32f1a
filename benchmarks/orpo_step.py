"""Speed and memory of the packed ORPO step against TRL's ORPOTrainer, on the same pairs.

    python -m benchmarks.orpo_step [--quick] [--json FILE]

Both run as whole trainers (their own optimiser steps included) in a process each, and take turns step by
step, so that what else the machine does falls on both. Tokens are counted as TRL sees them unpadded:
prompt + chosen and prompt + rejected. Needs preference pairs in the schema of orpo-dpo-mix-40k:
$SHARED_DATA/preferences.jsonl or ../shared/data/preferences.jsonl.
"""

import argparse
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.orpo_trainers import make_trainer
from ray_jobs.orpo.settings import LoraSettings, TrainingSettings
from ray_jobs.orpo.tokens import PairTokens, TokenizedPairs, tokenize_pairs
from ray_jobs.records import Pair, messages_from

ROOT = Path(__file__).parents[1]
MAX_PAIR_TOKENS = 768
PAIRS_PER_STEP = 4
PROMPT_SHARE = 0.75
WARM_UP = {"trl": 1, "packed": 2}
"""Untimed first steps, all on the first batch; the second one meets no kernel that is still uncompiled."""


def main() -> None:
    arguments = _arguments()
    if arguments.worker:
        run_worker(arguments.worker, arguments.case, arguments.steps)
        return
    steps = 2 if arguments.quick else 4
    results = {case: compare(case, steps) for case in ("real", "long_prompt")}
    report: dict[str, Any] = {
        "figures": figures_of(results),
        "work": work(steps),
        "machine": machine(),
        "versions": versions(),
    }
    report["steps"] = results
    print_report(report)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two timed steps of each case instead of four")
    parser.add_argument("--json", metavar="FILE", help="write figures, work, machine and versions here")
    parser.add_argument("--worker", choices=["trl", "packed"], help=argparse.SUPPRESS)
    parser.add_argument("--case", default="real", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(case: str, steps: int) -> dict[str, Any]:
    """Let both trainers take turns over the same batches, after warm-up steps; `steps` of them are timed."""
    workers = {name: _start(name, case, steps + warm_up) for name, warm_up in WARM_UP.items()}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for name, worker in workers.items():
        for _ in range(WARM_UP[name]):
            turns[name].append(_take_turn(worker))
    for _ in range(steps):
        for name, worker in workers.items():
            turns[name].append(_take_turn(worker))
    rate = float(_read(workers["packed"], "RATE "))
    for worker in workers.values():
        worker.communicate(timeout=120)
    timed = {name: steps_of[WARM_UP[name] :] for name, steps_of in turns.items()}
    ratios = [
        trl["seconds"] / packed["seconds"] for trl, packed in zip(timed["trl"], timed["packed"], strict=True)
    ]
    return {
        "speedup": statistics.median(ratios),
        "tokens_per_s": {
            name: statistics.median(t["tokens"] / t["seconds"] for t in of) for name, of in timed.items()
        },
        "peak_memory_gib": {name: of[-1]["peak_memory_bytes"] / 2**30 for name, of in turns.items()},
        "roofline_share": statistics.median(
            turn["flops"] / turn["seconds"] / rate for turn in timed["packed"]
        ),
        "matrix_rate": rate,
        "turns": turns,
        "load_average": os.getloadavg(),
    }


def _start(name: str, case: str, steps: int) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "benchmarks.orpo_step",
        "--worker",
        name,
        "--case",
        case,
        "--steps",
        str(steps),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    _read(worker, "READY")  # one after the other: each measures the matrix rate when it starts
    return worker


def _take_turn(worker: "subprocess.Popen[str]") -> dict[str, float]:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    turn: dict[str, float] = json.loads(_read(worker, "TURN "))
    return turn


def _read(worker: "subprocess.Popen[str]", word: str) -> str:
    """The rest of the worker's next line that starts with a word."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(word):
            return line.removeprefix(word)
    raise SystemExit(f"the worker ended early: {worker.args}")


def run_worker(name: str, case: str, steps: int) -> None:
    """One trainer that waits for its turn before every step and tells how long the step took."""
    import torch
    from transformers import TrainerCallback

    from ray_jobs.orpo.flops import matrix_rate

    pairs = pairs_of(case)
    pairs = [*pairs[:PAIRS_PER_STEP] * WARM_UP[name], *pairs[PAIRS_PER_STEP:]][: steps * PAIRS_PER_STEP]
    torch.set_num_threads(os.cpu_count() or 1)
    trainer = make_trainer(name, model_dir(), pairs, settings_of(steps), torch.device("cpu"))

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
            sys.stdin.readline()
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
            del args, control
            seconds = time.perf_counter() - self.started
            print("TURN " + json.dumps(_turn(trainer, pairs, state.global_step, seconds)), flush=True)

    trainer.add_callback(Turns())
    print("READY", flush=True)
    trainer.train()
    if name == "packed":  # the other one has ended by now
        # measured before and after: what else the machine does can only lower a reading
        dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
        rates = trainer.meter.matrix_rate, matrix_rate(torch.device("cpu"), dtype)
        print(f"RATE {max(rates)}", flush=True)


def _turn(trainer: Any, pairs: Sequence[PairTokens], step: int, seconds: float) -> dict[str, float]:
    import torch

    from ray_jobs.orpo.metrics import peak_memory_bytes

    batch = pairs[(step - 1) * PAIRS_PER_STEP : step * PAIRS_PER_STEP]
    turn = {
        "seconds": seconds,
        "tokens": sum(pair.num_unshared for pair in batch),
        "loss": trainer._tr_loss.item(),
        "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")) or 0,
    }
    if hasattr(trainer, "flops"):
        from ray_jobs.orpo.packing import pack

        packed = pack(batch)
        turn["flops"] = trainer.flops.of_rows(packed.spans, len(packed.label_N))
    return turn


def settings_of(steps: int, **changes: Any) -> TrainingSettings:
    fields: dict[str, Any] = {
        "num_steps": steps,
        "pairs_per_step": PAIRS_PER_STEP,
        "max_pair_tokens": MAX_PAIR_TOKENS,
        "max_batch_tokens": 8192,
        "lora": LoraSettings(rank=16),
        "precision": "auto",
        "compile": "on",
        "warmup_share": 0.0,
        "logging_steps": 10**6,
    }
    return TrainingSettings(**(fields | changes))


def precision() -> str:
    """bf16 where the processor has it: elsewhere it is emulated, hundreds of times slower."""
    import torch

    from ray_jobs.orpo.models import uses_bf16

    return "bf16" if uses_bf16(settings_of(1), torch.device("cpu")) else "fp32"


def model_dir() -> str:
    """The bundled model as safetensors; kept in the cache folder."""
    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.settings import ModelSettings

    return str(resolve_base(ModelSettings(base="bundled:smollm2-135m-instruct"), default_cache_dir()).hf_dir)


def read_pairs() -> list[Pair]:
    folder = Path(os.environ.get("SHARED_DATA") or ROOT.parent / "shared" / "data")
    path = folder / "preferences.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path}: no preference pairs; set SHARED_DATA")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Pair(
            str(i),
            row["source"],
            messages_from(row["chosen"][:-1]),
            row["chosen"][-1]["content"],
            row["rejected"][-1]["content"],
        )
        for i, row in enumerate(rows)
    ]


def tokenized(pairs: Sequence[Pair], max_pair_tokens: int = MAX_PAIR_TOKENS) -> TokenizedPairs:
    from ray_jobs.orpo.models import load_tokenizer

    return tokenize_pairs(
        load_tokenizer(model_dir()), pairs, TrainingSettings(max_pair_tokens=max_pair_tokens)
    )


def pairs_of(case: str) -> list[PairTokens]:
    """Real pairs in a fixed random order, or long-prompt pairs cut from the same text."""
    pairs = read_pairs()
    random.Random(0).shuffle(pairs)
    real = tokenized(pairs[:120]).pairs
    if case == "real":
        return list(real)
    text = [token for pair in real for token in (*pair.chosen, *pair.rejected)]
    num_prompt = int(PROMPT_SHARE * MAX_PAIR_TOKENS)
    num_answer = MAX_PAIR_TOKENS - num_prompt
    cut = []
    for index in range(0, len(text) - MAX_PAIR_TOKENS - num_answer, MAX_PAIR_TOKENS + num_answer):
        ids = tuple(text[index : index + MAX_PAIR_TOKENS + num_answer])
        chosen, rejected = ids[num_prompt:MAX_PAIR_TOKENS], ids[MAX_PAIR_TOKENS:]
        # real answers differ in length: one is cut to three quarters
        shorter = num_answer * 3 // 4
        pair = (chosen, rejected[:shorter]) if index % 2 else (chosen[:shorter], rejected)
        cut.append(PairTokens(f"cut-{index}", ids[:num_prompt], *pair))
    return cut


def figures_of(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    real, long_prompt = results["real"], results["long_prompt"]
    memory = real["peak_memory_gib"]
    return {
        "speedup_vs_trl": real["speedup"],
        "speedup_vs_trl_long_prompt": long_prompt["speedup"],
        "memory_ratio_vs_trl": memory["packed"] / memory["trl"],
        "roofline_share": real["roofline_share"],
        "roofline_share_long_prompt": long_prompt["roofline_share"],
        "packed_tokens_per_s": real["tokens_per_s"]["packed"],
        "trl_tokens_per_s": real["tokens_per_s"]["trl"],
    }


def work(steps: int) -> dict[str, Any]:
    return {
        "model": "SmolLM2-135M-Instruct",
        "adapters": "LoRA r=16 on all linear layers",
        "precision": precision(),
        "pairs": "AlpacaEval annotations up to 768 tokens",
        "pairs_per_step": PAIRS_PER_STEP,
        "timed_steps": steps,
        "peer": "TRL ORPOTrainer, in the same precision",
        "order": "taking turns, ratio per step, median",
    }


def machine() -> dict[str, Any]:
    import torch

    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft")} | {
        "python": platform.python_version()
    }


def print_report(report: dict[str, Any]) -> None:
    for case, result in report["steps"].items():
        rates, memory = result["tokens_per_s"], result["peak_memory_gib"]
        for name in ("trl", "packed"):
            print(f"{case:12} {name:7} {rates[name]:7.0f} tokens/s {memory[name]:6.1f} GiB")
        print(f"{case:12} {result['speedup']:.2f}x, {result['roofline_share']:.0%} of the matrix rate")
    for name, value in report["figures"].items():
        print(f"{name:32} {value:.3f}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
