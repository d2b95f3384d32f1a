"""Judgements per second: the engine against one prompt at a time through `Llama`, as flow-judge usually runs.

A judgement is what Flow Judge does: read question, answer, criteria and rubric, write feedback, then a score.
Two answers to each question are judged, as for a base and a candidate. The engine judges in flow-judge's own
order, and with the rubric first (`judge.prompt_order`), an engine a core, as a run does. With OpenVINO too,
where it is installed: one engine over all cores, which is as fast as the processes of a run, while several in
one process wait for each other. Scores are greedy: the shares of equal ones are printed.
"""

from __future__ import annotations

import json
import operator
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness import (
    REPOSITORY,
    Contestant,
    Race,
    Rounds,
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
Counts = Mapping[str, Any]
Round = Callable[[Sequence[str]], Counts]

CONTESTANTS = [
    Contestant("sequential"),
    Contestant("engine", our_kernels=True),
    Contestant("engine_rubric_first", our_kernels=True),
    Contestant("engine_llama_cpp_kernels"),
]
WITH_OPENVINO = [Contestant("engine_openvino"), Contestant("engine_openvino_rubric_first")]


def judge_prompts(count: int, start: int, order: PromptOrder = "flow_judge") -> list[str]:
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
        for question, answer in answers(start + count)[start:]
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


def sequential(model: str, feedback_tokens: int) -> Round:
    """One prompt at a time through `Llama` with its defaults."""
    from llama_cpp import Llama

    from serving.engine import Tokenizer

    llama = Llama(model, n_ctx=CONTEXT_TOKENS, verbose=False)
    tokenizer = Tokenizer.open(model)
    start = tokenizer.tokenize(SCORE_START)
    bias = {tokenizer.tokenize(score)[0]: 100.0 for score in SCORES}

    def work(prompts: Sequence[str]) -> Counts:
        scores = []
        for text in prompts:
            prompt = list(tokenizer.chat.render([{"role": "user", "content": text}]))
            feedback = llama.create_completion(
                prompt, max_tokens=feedback_tokens, temperature=0.0, stop=["</"]
            )
            written = tokenizer.tokenize(feedback["choices"][0]["text"])
            scored = llama.create_completion(
                [*prompt, *written, *start], max_tokens=1, temperature=0.0, logit_bias=bias
            )
            scores.append(int(scored["choices"][0]["text"]))
        return {"judgements": len(prompts), "scores": scores}

    return work


def engine(model: str, feedback_tokens: int, slots: int, backend: Literal["llama_cpp", "openvino"]) -> Round:
    """The judge of a run: engines on all cores, the prompts divided among them."""
    from ray_jobs.judging.backend import Call
    from ray_jobs.judging.engine_judge import EngineJudge
    from ray_jobs.judging.settings import JudgeSettings
    from serving.engine import Engine, EngineSettings

    cores = os.cpu_count() or 1
    widths = [1] * cores if backend == "llama_cpp" else [cores]
    settings = EngineSettings(
        backend=backend,
        cores=widths[0],
        slots=slots * widths[0],
        context_tokens=CONTEXT_TOKENS,
        kv_type="f16",
        deterministic="auto",
    )
    asked = JudgeSettings(
        model=model,
        max_feedback_tokens=feedback_tokens,
        long_feedback="score",
        temperature=0.0,
        context_tokens=CONTEXT_TOKENS,
    )
    engines = [Engine.open(model, settings, lease) for lease in own_cores(*widths)]
    judges = [EngineJudge(opened, asked, sha256="0" * 64) for opened in engines]
    scores = [int(score) for score in SCORES]

    def work(prompts: Sequence[str]) -> Counts:
        calls = [Call(str(index), text, index, 0.0) for index, text in enumerate(prompts)]
        size = -(-len(calls) // len(engines))
        shares = [calls[at : at + size] for at in range(0, len(calls), size)]
        with ThreadPoolExecutor(len(engines)) as pool:
            done = pool.map(
                lambda judge, share: judge.complete(share, scores, lambda _: None), judges, shares
            )
            completions = [completion for share in done for completion in share]
        metrics = [opened.metrics() for opened in engines]
        return {
            "judgements": len(completions),
            "scores": [int(one.text.split("<score>")[1].split("<")[0]) for one in completions],
            "prompt_tokens": sum(one.prompt_tokens for one in metrics),
            "cached_tokens": sum(one.cached_tokens for one in metrics),
        }

    return work


def open_way(name: str, model: str, feedback_tokens: int, slots: int) -> Round:
    if name == "sequential":
        return sequential(model, feedback_tokens)
    return engine(model, feedback_tokens, slots, "openvino" if "openvino" in name else "llama_cpp")


def main() -> None:
    options = parser("Judgements per second: the engine against one prompt at a time through Llama.")
    options.add_argument("--prompts", type=int)
    options.add_argument("--feedback-tokens", type=int, default=64)
    options.add_argument("--slots", type=int, default=16)
    options.add_argument("--repeats", type=int)
    options.add_argument("--only", help="comma-separated contestants besides the sequential one")
    chosen = options.parse_args()
    num_prompts = chosen.prompts or (24 if chosen.quick else 48)
    repeats = chosen.repeats or (2 if chosen.quick else 5)
    if chosen.worker:
        order: PromptOrder = "rubric_first" if "rubric_first" in chosen.worker else "flow_judge"
        way = open_way(chosen.worker, str(quantised("q4_0")), chosen.feedback_tokens, chosen.slots)
        serve_rounds(lambda turn: way(judge_prompts(num_prompts, turn * num_prompts, order)))
        return
    quantised("q4_0")
    entered = CONTESTANTS + (WITH_OPENVINO if find_spec("openvino_genai") is not None else [])
    if chosen.only:
        wanted = {"sequential", *chosen.only.split(",")}
        if unknown := wanted - {one.name for one in entered}:
            options.error(f"--only: unknown: {', '.join(sorted(unknown))}")
        entered = [one for one in entered if one.name in wanted]
    passed_on = [f"--prompts={num_prompts}", f"--feedback-tokens={chosen.feedback_tokens}"]
    passed_on.append(f"--slots={chosen.slots}")
    race = Race("benchmarks.judging", entered, passed_on)
    rounds = race.run(repeats)
    race.close()
    work = {"model": bundled_model().name, "num_prompts": num_prompts, "repeats": repeats,
            "feedback_tokens": chosen.feedback_tokens, "slots": chosen.slots, "rounds": rounds}  # fmt: skip
    report(figures(rounds), work, chosen.json)


def _speedup(name: str) -> str:
    """`engine` asks what the sequential way asks: its ratio is `speedup_vs_sequential`."""
    return "speedup_vs_sequential" + name.removeprefix("engine")


def figures(rounds: Rounds) -> dict[str, float]:
    found = {f"judgements_per_s_{name}": median_rate(each, "judgements") for name, each in rounds.items()}
    theirs = rounds["sequential"]
    expected = [score for one in theirs for score in one["scores"]]
    found["mean_score_sequential"] = statistics.mean(expected)
    for name, each in rounds.items():
        if name == "sequential":
            continue
        scores = [score for one in each for score in one["scores"]]
        found[_speedup(name)] = median_ratio(each, theirs, "judgements")
        found[f"same_scores_{name}"] = statistics.mean(map(operator.eq, scores, expected))
        found[f"mean_score_{name}"] = statistics.mean(scores)
        if each[-1]["cached_tokens"]:  # OpenVINO does not tell
            asked, cached = each[-1]["prompt_tokens"], each[-1]["cached_tokens"]
            found[f"prefix_hit_rate_{name}"] = cached / asked
            found[f"computed_prompt_tokens_{name}"] = (asked - cached) / len(scores)
    return found


if __name__ == "__main__":
    main()
