"""Judgements per second: the engine against one prompt at a time through `Llama`, as flow-judge usually runs.

A judgement is what Flow Judge does: read question, answer, criteria and rubric, write feedback, then a score.
Two answers to each question are judged, as for a base and a candidate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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

CONTEXT_TOKENS = 2048
SCORES = "12345"
SCORE_START = "\n</feedback>\n<score>"
Counts = Mapping[str, float]

CONTESTANTS = [Contestant("sequential_q4_0"), Contestant("engine_q4_0")]


def judge_prompts(count: int) -> list[str]:
    """flow-judge's own prompts for pairs of answers to the same question."""
    from flow_judge import EvalInput, format_rubric, format_user_prompt, format_vars
    from flow_judge.metrics import RESPONSE_FAITHFULNESS_5POINT

    metric = RESPONSE_FAITHFULNESS_5POINT

    prompts = []
    for question, answer in answers(count):
        given = EvalInput(inputs=[{"question": question}], output={"response": answer})
        variables = {
            "INPUTS": format_vars(given.inputs),
            "OUTPUT": format_vars([given.output]),
            "EVALUATION_CRITERIA": metric.criteria,
            "RUBRIC": format_rubric(metric.rubric),
        }
        prompts.append(format_user_prompt(variables))
    return prompts


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
    """Everything at once; each score as soon as its feedback is there, over what is cached of it."""
    from serving.engine import Engine, EngineSettings, Request, Result, Sampling, Stream

    cores = os.cpu_count() or 1
    settings = EngineSettings(cores=cores, lanes=cores, slots=slots, context_tokens=CONTEXT_TOKENS)
    opened = Engine.open(model, settings, own_cores(cores))
    start = tuple(opened.tokenize(SCORE_START))
    bias = {opened.tokenize(score)[0]: 100.0 for score in SCORES}
    feedback = Sampling(max_tokens=feedback_tokens, stop=("</",))
    score = Sampling(max_tokens=1, logit_bias=bias)

    def work() -> Counts:
        rendered = [opened.chat.render([{"role": "user", "content": text}]) for text in prompts]
        by_id = {str(index): prompt for index, prompt in enumerate(rendered)}
        streams: list[Stream] = []

        def ask_score(result: Result) -> None:
            written = tuple(opened.tokenize(result.text))
            streams.append(opened.submit(Request(result.id, (*by_id[result.id], *written, *start), score)))

        opened.generate(
            [Request(name, prompt, feedback) for name, prompt in by_id.items()], on_done=ask_score
        )
        results = [stream.result() for stream in streams]
        metrics = opened.metrics()
        return {
            "judgements": len(results),
            "score_sum": sum(int(result.text) for result in results),
            "prefix_hit_rate": metrics.prefix_hit_rate,
        }

    return work


def main() -> None:
    options = parser("Judgements per second: the engine against one prompt at a time through Llama.")
    options.add_argument("--prompts", type=int)
    options.add_argument("--feedback-tokens", type=int, default=64)
    options.add_argument("--slots", type=int, default=16)
    options.add_argument("--repeats", type=int)
    chosen = options.parse_args()
    num_prompts = chosen.prompts or (32 if chosen.quick else 96)
    repeats = chosen.repeats or (2 if chosen.quick else 5)
    if chosen.worker:
        prompts, model = judge_prompts(num_prompts), str(quantised("q4_0"))
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
    figures = {
        "judgements_per_s_engine": median_rate(ours, "judgements"),
        "judgements_per_s_sequential": median_rate(theirs, "judgements"),
        "speedup_vs_sequential": median_ratio(ours, theirs, "judgements"),
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
