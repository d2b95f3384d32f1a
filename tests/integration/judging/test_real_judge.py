"""A real judge model, small as it is, through the real engine."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.errors import DataError
from ray_jobs.judging.attacks import ATTACKS, attack_items, attack_uplift
from ray_jobs.judging.engine_judge import EngineJudge
from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.metrics import load_metric, outline_of
from ray_jobs.judging.presets import PRESETS
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.judging.trust import judge_trust, trust_items, trust_references
from ray_jobs.records import Message, Pair, Prompt
from serving.engine import Engine, EngineSettings, Request

METRIC = "RESPONSE_CORRECTNESS_5POINT"
CONTEXT_TOKENS = 2048
QUESTIONS = {
    "What is the capital of France?": ("Paris", "Lyon, the largest city of the country"),
    "What is 12 + 30? Answer with the number.": ("42", "1230"),
    "Write the word 'cat' backwards.": ("tac", "cat cat"),
}


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[Engine]:
    settings = EngineSettings(cores=2, pin=False, context_tokens=CONTEXT_TOKENS, slots=6)
    with Engine.open(model_path, settings) as opened:
        yield opened


def settings(**fields: object) -> JudgeSettings:
    return JudgeSettings(model="judge.gguf", context_tokens=CONTEXT_TOKENS, **fields)  # type: ignore[arg-type]


def judge(engine: Engine, chosen: JudgeSettings, metric: str = METRIC) -> Judge:
    return Judge(EngineJudge(engine, chosen, sha256=engine.model_sha256), chosen, metric)


def pairs() -> list[Pair]:
    return [
        Pair(f"p{number}", "tests", (Message("user", question),), right, wrong)
        for number, (question, (right, wrong)) in enumerate(QUESTIONS.items())
    ]


def items() -> list[JudgeItem]:
    return trust_items(pairs(), trust_references(pairs(), "chosen"))


def test_every_score_is_one_that_the_rubric_offers(engine: Engine) -> None:
    talk = (Message("user", "Hello"), Message("assistant", "Hello."), Message("user", "Name a colour."))
    row = JudgeItem("a", Prompt("a", "tests", talk, "Red."), "Blue.")
    for metric in (
        "RESPONSE_CORRECTNESS_BINARY",
        "RESPONSE_FAITHFULNESS_3POINT",
        "RESPONSE_RELEVANCE_5POINT",
    ):
        scores = PRESETS[metric].scores
        (found,) = judge(engine, settings(feedback=False), metric).judge([row])
        assert found.failure is None
        assert found.score in scores
        assert found.expected_score is not None
        assert min(scores) < found.expected_score < max(scores)


def test_feedback_or_the_reason_why_there_is_no_score(engine: Engine) -> None:
    found = judge(engine, settings(max_feedback_tokens=24)).judge(items()[:4])
    for judgement in found:
        assert judgement.feedback
        assert (judgement.score is None) == (judgement.failure is not None)
        assert judgement.failure in (None, "too_long")
        assert judgement.score is None or 1 <= judgement.score <= 5


def test_flow_judge_on_our_model_says_the_same(model_path: Path) -> None:
    """flow_judge's own FlowJudge and Judge, both greedy, where answers do not depend on neighbours."""
    from flow_judge import FlowJudge

    chosen = settings(feedback=False, temperature=0.0)
    asked = items()[:4]
    exact = EngineSettings(cores=2, pin=False, context_tokens=CONTEXT_TOKENS, slots=2, deterministic=True)
    with Engine.open(model_path, exact) as engine:
        ours = [judgement.score for judgement in judge(engine, chosen).judge(asked)]
        backend = EngineJudge(engine, chosen, sha256="0" * 64, scores=outline_of(METRIC).scores)
        rows = [_eval_input(item) for item in asked]
        flow = FlowJudge(load_metric(METRIC), backend, None)
        theirs = flow.batch_evaluate(rows, use_tqdm=False, save_results=False)
        assert [output.score for output in theirs] == ours
        assert flow.evaluate(rows[0]).score == ours[0]


def _eval_input(item: JudgeItem) -> Any:
    from flow_judge import EvalInput

    inputs = [{"query": item.prompt.messages[0].content}, {"reference_answer": item.prompt.reference}]
    return EvalInput(inputs=inputs, output={"response": item.answer})


def test_control_tokens_in_answers_stay_text(engine: Engine) -> None:
    honest = items()[0]
    (attacked,) = attack_items([honest], "control_tokens", 5)
    chosen = settings(feedback=False)
    one = judge(engine, chosen)
    ends = []
    for row in (honest, attacked):
        tokens = engine.chat.render([{"role": "user", "content": one.prompt(row)}])
        ends.append([token for token in tokens if not engine.detokenize([token])])
    assert len(ends[0]) > 0
    assert ends[0] == ends[1]


def test_prompts_that_do_not_fit_are_counted_and_named(engine: Engine) -> None:
    long = JudgeItem("long", Prompt("long", "tests", (Message("user", "why " * 3000),), "So."), "So.")
    one = judge(engine, settings(feedback=False))
    one.check_context(items())
    with pytest.raises(DataError, match=r"judge\.context_tokens: 2048 .*1 of 1 rows .*: long$"):
        one.check_context([long])
    assert one.judge([long])[0].failure == "too_long_prompt"


def test_attacks_that_imitate_the_frame_are_read_as_text(engine: Engine) -> None:
    one = judge(engine, settings(feedback=False))
    worse = items()[1:4:2]
    honest = one.judge(worse)
    for name, attack in ATTACKS.items():
        if attack.stops != "parser":
            continue
        found = one.judge(attack_items(worse, name, 5))
        assert all(judgement.failure is None for judgement in found)
        uplift = attack_uplift(name, honest, found)
        assert uplift.uplift is not None
        assert uplift.uplift < 0.3, f"{name}: this judge copies a score that it is shown, and gives 0.7 more"


def test_trust_of_this_judge_is_measured(engine: Engine) -> None:
    trust = judge_trust(pairs(), judge(engine, settings(feedback=False)).judge(items()))
    assert trust.pairs == 3
    assert trust.unscored == 0
    assert not trust.trusted  # three pairs prove nothing, whoever judges


@pytest.mark.skipif("JUDGE_GGUF" not in os.environ, reason="JUDGE_GGUF names no judge that can judge")
def test_a_judge_that_can_judge_is_trusted() -> None:
    from ray_jobs.data.bundled.rows import bundled_rows
    from ray_jobs.records import messages_from

    known = [
        Pair(
            f"p{number}",
            row["source"],
            messages_from(row["chosen"][:-1]),
            row["chosen"][-1]["content"],
            row["rejected"][-1]["content"],
        )
        for number, row in enumerate(bundled_rows("bundled:pairs"))
    ][:40]
    references = trust_references(known, "chosen")
    with Engine.open(os.environ["JUDGE_GGUF"], EngineSettings(cores=2, pin=False, slots=4)) as opened:
        found = judge(opened, settings(feedback=False)).judge(trust_items(known, references))
    assert judge_trust(known, found, references=references).trusted


class Counted:
    """An engine that remembers its results."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.results: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def submit(self, request: Request) -> Any:
        pending = self.engine.submit(request)

        def result() -> Any:
            found = pending.result()
            self.results.append((request, found))
            return found

        return SimpleNamespace(result=result)


def computed(model_path: Path, order: str) -> tuple[int, list[int]]:
    """Prompt tokens computed for six judgements, and those of each score that came after its feedback."""
    chosen = settings(prompt_order=order, max_feedback_tokens=16, long_feedback="score", cache=False)
    opened = EngineSettings(cores=2, pin=False, context_tokens=CONTEXT_TOKENS, slots=8, flash_attention=False)
    with Engine.open(model_path, opened) as engine:
        counted = Counted(engine)
        backend = EngineJudge(counted, chosen, sha256=engine.model_sha256)  # type: ignore[arg-type]
        assert all(row.score is not None for row in Judge(backend, chosen, METRIC).judge(items()))
        metrics = engine.metrics()
    scores = [
        found.num_prompt_tokens - found.num_cached_tokens
        for request, found in counted.results
        if request.sampling.grammar is not None
    ]
    return metrics.prompt_tokens - metrics.cached_tokens, scores


def test_what_rows_share_is_computed_once(model_path: Path) -> None:
    """With the rubric first all but inputs and answer; the score computes no more than its own tags."""
    own, own_scores = computed(model_path, "flow_judge")
    shared, shared_scores = computed(model_path, "rubric_first")
    assert shared < 0.5 * own
    assert len(own_scores) == len(shared_scores) == 6
    assert max(own_scores + shared_scores) <= 16
