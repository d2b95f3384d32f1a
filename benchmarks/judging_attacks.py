"""What answers that talk to the judge gain by it, and what cheaper ways of judging cost in agreement.

    python -m benchmarks.judging_attacks [--judge FILE.gguf] [--pairs N] [--limit-s S] [--json FILE]

On pairs of the bundled tasks whose better answer is known: how often the judge prefers it, for each way of
asking (flow-judge's order or the rubric first; with feedback or without), how often two ways agree on a pair,
and how much each attack lifts the score of the worse answer. Judgements are kept in a cache, so that a run
that ends at its limit is taken up by the same command (exit code 3 says that there is more to do).
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import cached, own_cores, parser, quantised, report
from ray_jobs.judging.attacks import ATTACKS, attack_items, attack_uplift
from ray_jobs.judging.cache import JudgementCache
from ray_jobs.judging.engine_judge import EngineJudge
from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.judging.trust import judge_trust, trust_items, trust_references
from ray_jobs.records import Judgement, Pair, messages_from
from serving.engine import Engine, EngineSettings

METRIC = "RESPONSE_CORRECTNESS_5POINT"
CONTEXT_TOKENS = 2048
FEEDBACK_TOKENS = 40
BLOCK = 32
PARSER_ATTACKS = tuple(name for name, attack in ATTACKS.items() if attack.stops == "parser")

WAYS = {
    f"{order}{'' if feedback else ', no feedback'}": {"prompt_order": order, "feedback": feedback}
    for feedback in (False, True)
    for order in ("flow_judge", "rubric_first")
}
ATTACKED = {
    "rubric_first, no feedback": tuple(ATTACKS),
    "flow_judge, no feedback": PARSER_ATTACKS,
    "rubric_first": PARSER_ATTACKS,
}


class OutOfTime(Exception):
    """The limit is reached; what was judged is in the cache."""


@dataclass
class Bench:
    """One judge, all ways of asking it."""

    engine: Engine
    cache: JudgementCache
    ends_s: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Way -> seconds and number of the judgements that were made in this process."""

    def judge(self, way: str, items: Sequence[JudgeItem]) -> list[Judgement]:
        settings = JudgeSettings.model_validate(
            {
                **WAYS[way],
                "model": "judge.gguf",
                "max_feedback_tokens": FEEDBACK_TOKENS,
                "long_feedback": "score",
                "context_tokens": CONTEXT_TOKENS,
            }
        )
        backend = EngineJudge(self.engine, settings, sha256=self.engine.model_sha256)
        judge = Judge(backend, settings, METRIC, cache=self.cache)
        found: list[Judgement] = []
        for start in range(0, len(items), BLOCK):
            if time.monotonic() > self.ends_s:
                raise OutOfTime
            before, began_s = len(self.cache), time.perf_counter()
            found += judge.judge(items[start : start + BLOCK])
            spent = self.seconds.setdefault(way, [0.0, 0.0])
            if made := len(self.cache) - before:
                spent[0] += time.perf_counter() - began_s
                spent[1] += made
        return found


def known_pairs(number: int) -> list[Pair]:
    """Pairs of the bundled tasks, by chance."""
    from ray_jobs.data.bundled.rows import bundled_rows

    rows = list(bundled_rows("bundled:pairs"))
    random.Random(0).shuffle(rows)
    return [
        Pair(
            f"pair-{index}",
            row["source"],
            messages_from(row["chosen"][:-1]),
            row["chosen"][-1]["content"],
            row["rejected"][-1]["content"],
        )
        for index, row in enumerate(rows[:number])
    ]


def agreements(bench: Bench, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Per way: agreement with the pairs' order. Per two ways: pairs on which both prefer the same answer."""
    references = trust_references(pairs, "chosen")
    items = trust_items(pairs, references)
    found: dict[str, Any] = {}
    prefers: dict[str, list[bool]] = {}
    for way in WAYS:
        judgements = bench.judge(way, items)
        trust = judge_trust(pairs, judgements, references=references)
        found[way] = {key: asdict(trust)[key] for key in ("pairs", "agreement", "ci95", "ties", "unscored")}
        scores = [row.expected_score or 0.0 for row in judgements]
        prefers[way] = [better > worse for better, worse in zip(scores[::2], scores[1::2], strict=True)]
    for order in ("flow_judge", "rubric_first"):
        both = zip(prefers[order], prefers[f"{order}, no feedback"], strict=True)
        found[order]["same_as_without_feedback"] = sum(a == b for a, b in both) / len(pairs)
    both = zip(prefers["flow_judge"], prefers["rubric_first"], strict=True)
    found["rubric_first"]["same_as_flow_judge"] = sum(a == b for a, b in both) / len(pairs)
    return found


def uplifts(bench: Bench, pairs: Sequence[Pair]) -> dict[str, list[dict[str, Any]]]:
    """Per way: each attack on the worse answers, in points of the rubric."""
    items = [item for item in trust_items(pairs, trust_references(pairs, "chosen")) if "rejected" in item.id]
    found: dict[str, list[dict[str, Any]]] = {}
    for way, attacks in ATTACKED.items():
        honest = bench.judge(way, items)
        found[way] = [
            asdict(attack_uplift(name, honest, bench.judge(way, attack_items(items, name, 5))))
            for name in attacks
        ]
    return found


def figures_of(agreed: dict[str, Any], attacked: dict[str, Any], bench: Bench) -> dict[str, float]:
    figures = {f"agreement, {way}": row["agreement"] for way, row in agreed.items()}
    for way, rows in attacked.items():
        figures |= {
            f"uplift of {row['attack']}, {way}": row["uplift"] for row in rows if row["uplift"] is not None
        }
        stopped = [row for row in rows if row["stops"] == "parser" and row["ci95"]]
        figures[f"parser attacks with a gain above 0, {way}"] = sum(row["ci95"][0] > 0 for row in stopped)
    made = {way: (spent, number) for way, (spent, number) in bench.seconds.items() if number >= BLOCK}
    return figures | {f"seconds a judgement, {way}": spent / number for way, (spent, number) in made.items()}


def options() -> argparse.Namespace:
    given = parser("Attacks on the judge, and what cheaper ways of judging cost.")
    given.add_argument("--judge", type=Path, help="GGUF; default: the bundled model in Q4_0")
    given.add_argument("--pairs", type=int)
    given.add_argument("--backend", choices=("llama_cpp", "openvino"), default="llama_cpp")
    given.add_argument("--limit-s", type=float, default=1e9, help="stop after this and exit with 3")
    given.add_argument("--cache", type=Path, help="file of judgements made so far")
    return given.parse_args()


def main() -> int:
    chosen = options()
    model = chosen.judge or quantised("q4_0")
    number = chosen.pairs or (20 if chosen.quick else 100)
    cores = os.cpu_count() or 1
    settings = EngineSettings(
        backend=chosen.backend,
        cores=cores,
        lanes=cores,
        slots=16 if chosen.backend == "llama_cpp" else 256,
        context_tokens=CONTEXT_TOKENS,
        kv_type="f16",
        flash_attention=False,
    )
    ends_s = time.monotonic() + chosen.limit_s
    cache_path = chosen.cache or cached(f"attacks-{chosen.backend}.sqlite")
    with Engine.open(model, settings, *own_cores(cores)) as engine, JudgementCache(cache_path) as cache:
        bench = Bench(engine, cache, ends_s)
        pairs = known_pairs(number)
        try:
            agreed, attacked = agreements(bench, pairs), uplifts(bench, pairs)
        except OutOfTime:
            sys.stderr.write(f"{len(cache)} judgements are made; the same command goes on\n")
            return 3
    work = {
        "judge": model.name,
        "backend": chosen.backend,
        "pairs": number,
        "agreement": agreed,
        "attacks": attacked,
    }
    report(figures_of(agreed, attacked, bench), work, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
