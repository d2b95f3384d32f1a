"""Measure how a model runs best on this machine: `python -m serving.engine.calibrate MODEL.gguf`.

Tries the few combinations of quantisation, lanes and slots that matter, and OpenVINO where it is installed,
within a bounded time: the likeliest winners first, on prompts and answers that are short where the machine is
slow. Prints what each gives and what each quantisation costs, for `auto` settings to use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from serving.engine.calibration import (
    NOT_FOR_OPENVINO,
    Calibration,
    Quality,
    Trial,
    calibration_path,
    cpu_name,
)
from serving.engine.calibration_text import TEXT
from serving.engine.engine import Engine
from serving.engine.errors import EngineError
from serving.engine.settings import EngineSettings
from serving.engine.topology import usable_cores
from serving.engine.types import Request, Sampling

Backend = Literal["llama_cpp", "openvino"]

_NEVER = -1000.0
"""Bias that keeps an answer from ending: all are of one length."""


@dataclass(frozen=True)
class Work:
    """What each slot is given: tokens of its prompt and of its answer."""

    prompt_tokens: int = 96
    answer_tokens: int = 32

    def within(self, budget_s: float, prompt_tokens_per_s: float, num_slots: int) -> Work:
        """Less of it, in the same proportions, where all slots would take longer; 8 prompt tokens at least.

        Prompts are read twice, and a token is written in about the time of three that are read.
        """
        num_read = num_slots * (2 * self.prompt_tokens + 3 * self.answer_tokens)
        share = min(1.0, budget_s * prompt_tokens_per_s / num_read)
        least = max(share, 8 / self.prompt_tokens)
        return Work(round(self.prompt_tokens * least), max(4, round(self.answer_tokens * least)))


FULL = Work()


def combinations(cores: int, *, with_openvino: bool) -> Iterator[tuple[Backend, int, int]]:
    """(backend, lanes, slots), the likeliest winners first: the time may end before the list does."""
    yield "llama_cpp", cores, 32
    if with_openvino:
        yield "openvino", 1, 256
    yield from (("llama_cpp", lanes, 32) for lanes in (1,) if lanes != cores)
    for slots in (16, 24, 8):
        for lanes in dict.fromkeys((cores, 1)):
            yield "llama_cpp", lanes, slots
    if with_openvino:
        yield "openvino", 1, 64


def default_recipes() -> tuple[str, ...]:
    """The likeliest winners first. BF16 loses next to nothing, and where the processor multiplies it, it may
    be as fast as 4 bits."""
    bf16 = ("q4_0-bf16", "bf16") if multiplies_bf16() else ()
    return ("q4_0", *bf16, "q8_0", "f16", "q4_0-pure")


def multiplies_bf16() -> bool:
    from serving.engine.llamacpp.library import system_info

    return "AVX512_BF16 = 1" in system_info()


def measure(path: Path, recipe: str, backend: Backend, lanes: int, slots: int, work: Work = FULL) -> Trial:
    """A request per slot, distinct prompts: tokens per second of prompts alone, then with answers.

    Raises EngineError if no engine can be opened, or a request fails.
    """
    cores = len(usable_cores() or [0]) or 1
    settings = EngineSettings(backend=backend, cores=cores, lanes=lanes, slots=slots, context_tokens=512)
    with Engine.open(path, settings) as engine:
        words = engine.tokenize(TEXT[:2000])
        prompts = [tuple((words[index:] + words)[: work.prompt_tokens]) for index in range(slots * lanes)]
        never_end = dict.fromkeys(engine.end_tokens, _NEVER) if backend == "llama_cpp" else {}
        began_s = time.perf_counter()
        engine.generate(
            [Request(str(i), prompt[::-1], Sampling(max_tokens=1)) for i, prompt in enumerate(prompts)]
        )
        prompt_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        sampling = Sampling(max_tokens=work.answer_tokens, logit_bias=never_end)
        results = engine.generate([Request(str(i), prompt, sampling) for i, prompt in enumerate(prompts)])
        answer_s = time.perf_counter() - began_s
    if refused := next((result.error for result in results if result.error), None):
        raise EngineError(f"{path}: {refused}")
    return Trial(
        backend=backend,
        recipe=recipe,
        lanes=lanes,
        slots=slots,
        answer_tokens_per_s=sum(result.num_answer_tokens for result in results) / answer_s,
        prompt_tokens_per_s=len(prompts) * work.prompt_tokens / prompt_s,
    )


def qualities(files: dict[str, Path]) -> list[Quality]:
    """Each file's cost against the first, on a fixed text."""
    from serving.engine.llamacpp.quality import greedy_agreement, next_token_logits, perplexity

    found, reference = [], None
    for recipe, path in files.items():
        tokens, logits = next_token_logits(str(path), TEXT)
        reference = logits if reference is None else reference
        found.append(
            Quality(
                recipe=recipe,
                perplexity=perplexity(tokens, logits),
                greedy_agreement=greedy_agreement(logits, reference),
                megabytes=path.stat().st_size / 1e6,
            )
        )
    return found


def calibrate(path: Path, *, limit_s: float, recipes: tuple[str, ...]) -> Calibration:
    """Raises ModelLoadError or CoresUnavailable; a combination that does not run is left out with a line."""
    from serving.engine.llamacpp.quantize import quantize

    until_s = time.monotonic() + limit_s
    cores = len(usable_cores() or [0]) or 1
    ways = list(combinations(cores, with_openvino=find_spec("openvino_genai") is not None))
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        made = {r: quantize(path, Path(folder) / f"{r}.gguf", r, num_threads=cores) for r in recipes}
        files = made | {"given": path}
        work = sized(next(iter(files.items())), ways[0], limit_s / (len(files) + 1))
        for recipe in files:
            if time.monotonic() < until_s:
                trials += _try(files[recipe], recipe, *ways[0], work)
        for recipe, way in second_round(trials, ways[1:]):
            if time.monotonic() < until_s:
                trials += _try(files[recipe], recipe, *way, work)
        order = sorted(("given", *made), key=lambda name: name != "f16")
        quality = qualities({name: files[name] for name in order})
    return Calibration(
        cpu=cpu_name(),
        cores=cores,
        model_bytes=path.stat().st_size,
        trials=tuple(trials),
        quality=tuple(quality),
    )


def sized(file: tuple[str, Path], way: tuple[Backend, int, int], budget_s: float) -> Work:
    """As much as one way to run this file does in the time; all others are given the same, to be compared.

    Raises EngineError if the file cannot be run.
    """
    (recipe, path), (backend, lanes, slots) = file, way
    short = measure(path, recipe, backend, lanes, 1, Work(32, 4))
    return FULL.within(budget_s, short.prompt_tokens_per_s, lanes * slots)


def second_round(
    trials: Sequence[Trial], ways: Sequence[tuple[Backend, int, int]]
) -> Iterator[tuple[str, tuple[Backend, int, int]]]:
    """Further ways to run the fastest quantisation, the first one that was tried, which is what runs use, and
    the file as it is; OpenVINO cannot read every one."""
    for way in ways:
        left_out = NOT_FOR_OPENVINO if way[0] == "openvino" else ()
        fitting = [trial for trial in trials if trial.recipe not in left_out]
        by_speed = sorted(fitting, key=lambda trial: -trial.answer_tokens_per_s)
        chosen = [trial.recipe for trial in (*by_speed[:1], *fitting[:1])]
        for recipe in dict.fromkeys((*chosen, "given")):
            yield recipe, way


def _try(path: Path, recipe: str, backend: Backend, lanes: int, slots: int, work: Work) -> list[Trial]:
    try:
        trial = measure(path, recipe, backend, lanes, slots, work)
    except EngineError as error:
        sys.stderr.write(f"{recipe} {backend} lanes={lanes} slots={slots}: {error}\n")
        return []
    sys.stderr.write(
        f"{recipe:<10} {backend:<9} lanes={lanes} slots={slots:<3} {trial.answer_tokens_per_s:8.0f} answer "
        f"and {trial.prompt_tokens_per_s:8.0f} prompt tokens/s\n"
    )
    return [trial]


def write(calibration: Calibration, path: Path) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(calibration.model_dump(), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def main() -> int:
    options = argparse.ArgumentParser(description="Measure how a model runs best on this machine.")
    options.add_argument("model", type=Path)
    options.add_argument(
        "--limit-s", type=float, default=300.0, help="stop trying further combinations after this"
    )
    options.add_argument("--recipes", default=",".join(default_recipes()), help="quantisations to compare")
    options.add_argument("--out", type=Path, help="default: beside the model, where `auto` finds it")
    chosen = options.parse_args()
    try:
        found = calibrate(
            chosen.model, limit_s=chosen.limit_s, recipes=tuple(filter(None, chosen.recipes.split(",")))
        )
    except (EngineError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for each in found.quality:
        sys.stderr.write(
            f"{each.recipe:<10} {each.megabytes:8.1f} MB  perplexity {each.perplexity:8.3f}  "
            f"greedy agreement with {found.quality[0].recipe} {each.greedy_agreement:.3f}\n"
        )
    out = chosen.out or calibration_path(chosen.model)
    write(found, out)
    sys.stderr.write(f"written to {out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
