"""An engine with few of its slots busy: `python -m benchmarks.part_load [--quick]`.

One engine on one core, in turns with busy slots kept side by side, with each request in the slot that was
least recently used, and with as many slots as clients, which leaves no gaps and keeps less for later. Clients
ask one question after the other, or go on with their chats. Prints tokens per second for each number of
clients, and the share of prompts that was not computed anew.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from benchmarks.harness import (
    Contestant,
    Race,
    Rounds,
    own_cores,
    parser,
    quantised,
    questions,
    report,
    serve_rounds,
)
from serving.engine import Engine, EngineSettings, Request, Sampling, placement, scheduler

SIDE_BY_SIDE, APART, NO_IDLE = "side_by_side", "apart", "slots_as_clients"
NUM_SLOTS = 16
NUM_QUESTIONS = 400
CONTEXT_TOKENS = 2048
MAX_ANSWER = 140
TURNS_OF_A_CHAT = 3


@dataclass(frozen=True)
class Load:
    """So many clients, each of which waits for one answer before it asks on."""

    clients: int
    chats: bool = False

    @property
    def name(self) -> str:
        return f"{self.clients}_{'chats' if self.chats else 'clients'}"


LOADS = (Load(2), Load(4), Load(8), Load(12), Load(NUM_SLOTS), Load(5, chats=True))


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--repeats", type=int, help="rounds; default: 5, quick 1")
    options.add_argument("--seconds", type=float, help="of each load in each round; default: 12, quick 3")
    chosen = options.parse_args()
    chosen.repeats = chosen.repeats or (1 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (3.0 if chosen.quick else 12.0)
    if chosen.worker:
        serve_rounds(Contender(chosen).round)
        return
    names = (SIDE_BY_SIDE, APART, NO_IDLE)
    race = Race(
        "benchmarks.part_load",
        [Contestant(name, our_kernels=True) for name in names],
        ["--seconds", str(chosen.seconds)],
    )
    try:
        rounds = race.run(chosen.repeats)
    finally:
        race.close()
    work = {"slots": NUM_SLOTS, "cores": 1, "repeats": chosen.repeats, "seconds": chosen.seconds}
    report(figures(rounds), work, chosen.json)


def figures(rounds: Rounds) -> dict[str, float]:
    """Medians of the rounds, and of the ratios within each."""
    found: dict[str, float] = {}
    for load in (load.name for load in LOADS):
        rates = {name: [one[load]["tokens_per_s"] for one in each] for name, each in rounds.items()}
        found |= {f"tokens_per_s_{load}_{name}": statistics.median(each) for name, each in rates.items()}
        for other in (APART, NO_IDLE):
            found[f"speedup_{load}_vs_{other}"] = _ratio(rates[SIDE_BY_SIDE], rates[other])
        for name, each in rounds.items():
            found[f"hit_rate_{load}_{name}"] = statistics.median(one[load]["hit_rate"] for one in each)
    return found


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


class Contender:
    """One way to place requests, in a process of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._way, self._seconds = options.worker, options.seconds
        if self._way == APART:
            _leave_apart()
        self._model = quantised("q4_0")
        self._questions = questions(NUM_QUESTIONS)
        self._engine = None if self._way == NO_IDLE else self._open(NUM_SLOTS)

    def round(self, turn: int) -> dict[str, Any]:
        return {load.name: self._measured(load, turn) for load in LOADS}

    def _open(self, num_slots: int) -> Engine:
        settings = EngineSettings(
            backend="llama_cpp", cores=1, lanes=1, slots=num_slots, context_tokens=CONTEXT_TOKENS
        )
        return Engine.open(self._model, settings, *own_cores(1))

    def _measured(self, load: Load, turn: int) -> Mapping[str, float]:
        if self._engine is not None:
            return self._under(self._engine, load, turn)
        with self._open(load.clients) as engine:
            return self._under(engine, load, turn)

    def _under(self, engine: Engine, load: Load, turn: int) -> Mapping[str, float]:
        """Every way gets the same clients in the same round, who ask the same in the same order."""
        before, began_s = engine.metrics(), time.perf_counter()
        counts = [0] * load.clients
        until_s = began_s + self._seconds

        def client(number: int) -> None:
            draw, turns = random.Random(f"{turn} {load.name} {number}"), list[dict[str, str]]()
            while time.perf_counter() < until_s:
                if not load.chats or len(turns) >= 2 * TURNS_OF_A_CHAT:
                    turns.clear()
                turns.append({"role": "user", "content": draw.choice(self._questions)})
                prompt = engine.chat.render(turns)
                if len(prompt) > CONTEXT_TOKENS - MAX_ANSWER:
                    turns.clear()
                    continue
                sampling = Sampling(max_tokens=draw.randint(20, MAX_ANSWER))
                result = engine.submit(Request(f"{number}", prompt, sampling)).result()
                counts[number] += result.num_answer_tokens
                turns.append({"role": "assistant", "content": result.text})

        threads = [threading.Thread(target=client, args=(number,)) for number in range(load.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, after = time.perf_counter() - began_s, engine.metrics()
        prompt_tokens = after.prompt_tokens - before.prompt_tokens
        return {
            "tokens_per_s": sum(counts) / seconds,
            "hit_rate": (after.cached_tokens - before.cached_tokens) / max(1, prompt_tokens),
        }


def _leave_apart() -> None:
    """Has this process's engines take the least recently used slot, wherever it lies, and move nothing."""
    mock.patch.object(placement, "_beside_the_busy", lambda home, *_: home).start()
    mock.patch.object(scheduler, "inward", return_value=None).start()


if __name__ == "__main__":
    main()
