"""What answers that talk to the judge gain by it, and what cheaper ways of judging cost in agreement.

    python -m benchmarks.judging_attacks [--judge FILE] [--adapter FILE] [--pairs N] [--thorough]

On pairs of the bundled tasks whose better answer is known, with the rubric first: how often the judge
prefers it with reasons before the score and without, on how many pairs both ways prefer the same answer, and
how much each attack lifts the score of the worse answer when the judge scores at once. `--thorough` asks in
flow-judge's own order too, and tries what the parser can stop on a judge that gives reasons. A judge tuned
by an adapter (`bundled:judge-adapter` is one) is asked without reasons alone, as it was tuned. Judgements are
kept in a cache, so that a run that ends at its limit is taken up by the same command (exit code 3: there is
more to do).
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
from ray_jobs.judging.adapter import ADAPTER, adapter_path
from ray_jobs.judging.attacks import ATTACKS, attack_items, attack_uplift
from ray_jobs.judging.cache import JudgementCache
from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_local
from ray_jobs.judging.settings import JudgeSettings, PromptOrder
from ray_jobs.judging.trust import judge_trust, trust_items, trust_references
from ray_jobs.records import Judgement, Pair, messages_from
from serving.engine import Engine, EngineSettings

METRIC = "RESPONSE_CORRECTNESS_5POINT"
CONTEXT_TOKENS = 2048
FEEDBACK_TOKENS = 40
BLOCK = 32
PARSER_ATTACKS = tuple(name for name, attack in ATTACKS.items() if attack.stops == "parser")

ORDERS: tuple[PromptOrder, ...] = ("rubric_first", "flow_judge")
WAYS = {
    f"{order}{'' if feedback else ', no feedback'}": {"prompt_order": order, "feedback": feedback}
    for order in ORDERS
    for feedback in (False, True)
}
ATTACKED = {
    "rubric_first, no feedback": tuple(ATTACKS),
    "rubric_first": PARSER_ATTACKS,
    "flow_judge, no feedback": PARSER_ATTACKS,
}
QUICK_ATTACKS = ("rubric_first, no feedback",)


class OutOfTime(Exception):
    """The limit is reached; what was judged is in the cache."""


@dataclass
class Bench:
    """One judge, all ways of asking it."""

    engine: Engine
    cache: JudgementCache
    ends_s: float
    adapter: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Way -> seconds and number of the judgements that were made in this process."""

    def judge(self, way: str, items: Sequence[JudgeItem]) -> list[Judgement]:
        settings = JudgeSettings.model_validate(
            {
                **WAYS[way],
                "model": "judge.gguf",
                "adapter": self.adapter,
                "max_feedback_tokens": FEEDBACK_TOKENS,
                "long_feedback": "score",
                "context_tokens": CONTEXT_TOKENS,
            }
        )
        backend = open_local(self.engine, settings, self.engine.model_sha256)
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


def agreements(bench: Bench, pairs: Sequence[Pair], orders: Sequence[PromptOrder]) -> dict[str, Any]:
    """Per way: agreement with the pairs' order. Per order: how often both ways prefer the same answer."""
    references = trust_references(pairs, "chosen")
    items = trust_items(pairs, references)
    found: dict[str, Any] = {}
    prefers: dict[str, list[bool]] = {}
    for way, asked in WAYS.items():
        if asked["prompt_order"] not in orders or (bench.adapter and asked["feedback"]):
            continue
        judgements = bench.judge(way, items)
        trust = judge_trust(pairs, judgements, references=references)
        found[way] = {key: asdict(trust)[key] for key in ("pairs", "agreement", "ci95", "ties", "unscored")}
        scores = [row.expected_score or 0.0 for row in judgements]
        prefers[way] = [better > worse for better, worse in zip(scores[::2], scores[1::2], strict=True)]
        found[way]["mean_scores"] = [sum(half) / len(pairs) for half in (scores[::2], scores[1::2])]
    for order in () if bench.adapter else orders:
        both = zip(prefers[order], prefers[f"{order}, no feedback"], strict=True)
        found[order]["same_as_without_feedback"] = sum(a == b for a, b in both) / len(pairs)
    return found


def uplifts(bench: Bench, pairs: Sequence[Pair], ways: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Per way: each attack on the worse answers, in points of the rubric."""
    items = [item for item in trust_items(pairs, trust_references(pairs, "chosen")) if "rejected" in item.id]
    found: dict[str, list[dict[str, Any]]] = {}
    for way in ways:
        honest = bench.judge(way, items)
        found[way] = [
            asdict(attack_uplift(name, honest, bench.judge(way, attack_items(items, name, 5))))
            for name in ATTACKED[way]
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


def print_tables(agreed: dict[str, Any], attacked: dict[str, Any]) -> None:
    print(f"{'asked':28} {'agreement (95 %)':>22} {'right':>6} {'wrong':>6} {'ties':>5} {'same order':>10}")
    for way, row in agreed.items():
        low, high = row["ci95"]
        better, worse = row["mean_scores"]
        same = row.get("same_as_without_feedback")
        print(
            f"{way:28} {row['agreement']:8.3f} ({low:.3f} to {high:.3f}) {better:6.2f} {worse:6.2f} "
            f"{row['ties']:5} {'' if same is None else f'{same:.2f}':>10}"
        )
    for way, rows in attacked.items():
        print(f"\n{way:28} {'stopped by':>10} {'uplift (95 %)':>28} {'unscored':>8}")
        for row in rows:
            ends = "no interval" if row["ci95"] is None else "{:+.3f} to {:+.3f}".format(*row["ci95"])
            mean = "none" if row["uplift"] is None else f"{row['uplift']:+.3f}"
            print(f"{row['attack']:28} {row['stops']:>10} {f'{mean} ({ends})':>28} {row['unscored']:8}")
    print()


def options() -> argparse.Namespace:
    given = parser("Attacks on the judge, and what cheaper ways of judging cost.")
    given.add_argument("--judge", type=Path, help="GGUF; default: the bundled model in Q4_0")
    given.add_argument("--adapter", help="a LoRA adapter to judge with: bundled:judge-adapter, or a file")
    given.add_argument("--pairs", type=int, help="default: 100")
    given.add_argument("--thorough", action="store_true", help="both orders; attacks with reasons too")
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
        adapters={ADAPTER: str(adapter_path(chosen.adapter))} if chosen.adapter else {},
    )
    ends_s = time.monotonic() + chosen.limit_s
    cache_path = chosen.cache or cached(f"attacks-{chosen.backend}.sqlite")
    with Engine.open(model, settings, *own_cores(cores)) as engine, JudgementCache(cache_path) as cache:
        bench, sha256 = Bench(engine, cache, ends_s, chosen.adapter), engine.model_sha256
        pairs = known_pairs(number)
        try:
            agreed = agreements(bench, pairs, ORDERS if chosen.thorough else ORDERS[:1])
            attacked = uplifts(bench, pairs, tuple(ATTACKED) if chosen.thorough else QUICK_ATTACKS)
        except OutOfTime:
            sys.stderr.write(f"{len(cache)} judgements are made; the same command goes on\n")
            return 3
    print_tables(agreed, attacked)
    work = {
        "judge": model.name,
        "judge_sha256": sha256,
        "adapter": chosen.adapter,
        "metric": METRIC,
        "feedback_tokens": FEEDBACK_TOKENS,
        "backend": chosen.backend,
        "pairs": number,
        "agreement": agreed,
        "attacks": attacked,
    }
    report(figures_of(agreed, attacked, bench), work, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
