"""Judgements per second: the engine against one prompt at a time through `Llama`, as flow-judge usually runs.

A judgement is what Flow Judge does: read question, answer, criteria and rubric, write feedback, then a score.
Two answers to each question are judged, as for a base and a candidate. The engine judges in flow-judge's own
order, and with the rubric first (`judge.prompt_order`), an engine a core, as a run does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import (
    REPOSITORY,
    Contestant,
    Race,
    bundled_model,
    median_rate,
    median_ratio,
    own_cores,
    parser,
    quantised,
    questions,
    report,
    serve_rounds,
)

if TYPE_CHECKING:
    from ray_jobs.judging.settings import PromptOrder

CONTEXT_TOKENS = 2048
SCORES = "12345"
SCORE_START = "\n</feedback>\n<score>"
Counts = Mapping[str, float]

CONTESTANTS = [
    Contestant("sequential_q4_0"),
    Contestant("engine_q4_0"),
    Contestant("engine_rubric_first_q4_0"),
]


def judge_prompts(count: int, order: PromptOrder = "flow_judge") -> list[str]:
    """flow-judge's prompts for pairs of answers to the same question."""
    from flow_judge import EvalInput
    from flow_judge.metrics import RESPONSE_FAITHFULNESS_5POINT

    from ray_jobs.judging.inputs import prompt_text

    return [
        prompt_text(
            RESPONSE_FAITHFULNESS_5POINT,
            EvalInput(inputs=[{"question": question}], output={"response": answer}),
            order,
        )
        for question, answer in answers(count)
    ]


def answers(count: int) -> list[tuple[str, str]]:
    """Questions with two answers each; made-up answers where there is no data."""
    folder = Path(os.environ.get("SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    source = folder / "preferences.jsonl"
    if not source.exists():
        return [(text, f"Answer {index % 2}: {text[::-1]}") for index, text in enumerate(questions(count))]
    found: list[tuple[str, str]] = []
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = row["chosen"][0]["content"]
        both = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        if len(question) + max(map(len, both)) < 2500:
            found += [(question, answer) for answer in both]
        if len(found) >= count:
            break
    return found[:count]


def sequential(model: str, prompts: Sequence[str], feedback_tokens: int) -> Callable[[], Counts]:
    """One prompt at a time through `Llama` with its defaults."""
    from llama_cpp import Llama

    from serving.engine import Tokenizer

    llama = Llama(model, n_ctx=CONTEXT_TOKENS, verbose=False)
    tokenizer = Tokenizer.open(model)
    start = tokenizer.tokenize(SCORE_START)
    bias = {tokenizer.tokenize(score)[0]: 100.0 for score in SCORES}

    def work() -> Counts:
        total = 0
        for text in prompts:
            prompt = list(tokenizer.chat.render([{"role": "user", "content": text}]))
            feedback = llama.create_completion(
                prompt, max_tokens=feedback_tokens, temperature=0.0, stop=["</"]
            )
            written = tokenizer.tokenize(feedback["choices"][0]["text"])
            scored = llama.create_completion(
                [*prompt, *written, *start], max_tokens=1, temperature=0.0, logit_bias=bias
            )
            total += int(scored["choices"][0]["text"])
        return {"judgements": len(prompts), "score_sum": total}

    return work


def engine(model: str, prompts: Sequence[str], feedback_tokens: int, slots: int) -> Callable[[], Counts]:
    """The judge of a run: an engine on each core, the prompts divided among them."""
    from concurrent.futures import ThreadPoolExecutor

    from ray_jobs.judging.backend import Call
    from ray_jobs.judging.engine_judge import EngineJudge
    from ray_jobs.judging.settings import JudgeSettings
    from serving.engine import Engine, EngineSettings

    cores = os.cpu_count() or 1
    settings = EngineSettings(
        slots=slots, context_tokens=CONTEXT_TOKENS, kv_type="f16", flash_attention=False
    )
    asked = JudgeSettings(
        model=model,
        max_feedback_tokens=feedback_tokens,
        long_feedback="score",
        temperature=0.0,
        context_tokens=CONTEXT_TOKENS,
    )
    engines = [Engine.open(model, settings, own_cores(1)) for _ in range(cores)]
    judges = [EngineJudge(opened, asked, sha256="0" * 64) for opened in engines]
    calls = [Call(str(index), text, index, 0.0) for index, text in enumerate(prompts)]
    size = -(-len(calls) // cores)
    shares = [calls[at : at + size] for at in range(0, len(calls), size)]
    scores = [int(score) for score in SCORES]

    def work() -> Counts:
        with ThreadPoolExecutor(cores) as pool:
            done = list(
                pool.map(lambda judge, share: judge.complete(share, scores, lambda _: None), judges, shares)
            )
        metrics = [opened.metrics() for opened in engines]
        completions = [completion for share in done for completion in share]
        return {
            "judgements": len(completions),
            "score_sum": sum(int(one.text.split("<score>")[1].split("<")[0]) for one in completions),
            "prefix_hit_rate": sum(one.cached_tokens for one in metrics)
            / sum(one.prompt_tokens for one in metrics),
        }

    return work


def main() -> None:
    options = parser("Judgements per second: the engine against one prompt at a time through Llama.")
    options.add_argument("--prompts", type=int)
    options.add_argument("--feedback-tokens", type=int, default=64)
    options.add_argument("--slots", type=int, default=16)
    options.add_argument("--repeats", type=int)
    chosen = options.parse_args()
    num_prompts = chosen.prompts or (64 if chosen.quick else 96)
    repeats = chosen.repeats or (2 if chosen.quick else 5)
    if chosen.worker:
        order: PromptOrder = "rubric_first" if "rubric_first" in chosen.worker else "flow_judge"
        prompts, model = judge_prompts(num_prompts, order), str(quantised("q4_0"))
        if chosen.worker.startswith("sequential"):
            serve_rounds(sequential(model, prompts, chosen.feedback_tokens))
        else:
            serve_rounds(engine(model, prompts, chosen.feedback_tokens, chosen.slots))
        return
    quantised("q4_0")
    passed_on = [f"--prompts={num_prompts}", f"--feedback-tokens={chosen.feedback_tokens}"]
    passed_on.append(f"--slots={chosen.slots}")
    race = Race("benchmarks.judging", CONTESTANTS, passed_on)
    rounds = race.run(repeats)
    race.close()
    ours, theirs = rounds["engine_q4_0"], rounds["sequential_q4_0"]
    shared = rounds["engine_rubric_first_q4_0"]
    figures = {
        "judgements_per_s_engine": median_rate(ours, "judgements"),
        "judgements_per_s_sequential": median_rate(theirs, "judgements"),
        "speedup_vs_sequential": median_ratio(ours, theirs, "judgements"),
        "judgements_per_s_rubric_first": median_rate(shared, "judgements"),
        "speedup_rubric_first_vs_sequential": median_ratio(shared, theirs, "judgements"),
        "prefix_hit_rate_engine": ours[0]["prefix_hit_rate"],
        "prefix_hit_rate_rubric_first": shared[0]["prefix_hit_rate"],
        "mean_score_engine": ours[0]["score_sum"] / ours[0]["judgements"],
        "mean_score_sequential": theirs[0]["score_sum"] / theirs[0]["judgements"],
    }
    work = {
        "model": bundled_model().name,
        "num_prompts": num_prompts,
        "feedback_tokens": chosen.feedback_tokens,
        "slots_per_lane": chosen.slots,
        "repeats": repeats,
        "rounds": rounds,
    }
    report(figures, work, chosen.json)


if __name__ == "__main__":
    main()
