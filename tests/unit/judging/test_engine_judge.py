"""The judge in this process, on an engine that says what it is told to."""

import math
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.judging.engine_judge import EngineJudge, drawn, score_grammar
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_local
from ray_jobs.judging.settings import JudgeSettings
from serving.engine.settings import EngineSettings
from serving.engine.types import Request, Result, TokenLogprob

from .fakes import item

METRIC = "RESPONSE_CORRECTNESS_5POINT"


class FakeEngine:
    """Tokens are characters. Feedback is `says`; the score is 4, with 5 as likely."""

    context_tokens = 100_000
    max_top_logprobs = 1000
    settings = EngineSettings()

    def __init__(self, says: str = "Because.", finish: str = "stop", num_slots: int = 3) -> None:
        self.says, self.finish, self.num_slots = says, finish, num_slots
        self.requests: list[Request] = []
        self.at_work = self.most_at_work = 0
        self._lock = threading.Lock()
        self.chat = SimpleNamespace(render=lambda messages: self.tokenize(f"[{messages[0]['content']}]"))

    def metrics(self) -> Any:
        return SimpleNamespace(num_slots=self.num_slots)

    def tokenize(self, text: str) -> Sequence[int]:
        return [ord(character) for character in text]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def submit(self, request: Request) -> Any:
        with self._lock:
            self.requests.append(request)
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        return SimpleNamespace(result=lambda: self._answer(request))

    def _answer(self, request: Request) -> Result:
        with self._lock:
            self.at_work -= 1
        text, finish, logprobs = self.says, self.finish, None
        if request.sampling.grammar is not None:
            top = {ord("4"): math.log(0.5), ord("5"): math.log(0.5)}
            text, finish, logprobs = "4", "length", (TokenLogprob(ord("4"), math.log(0.5), top),)
        tokens = tuple(map(ord, text))
        for stop in request.sampling.stop:
            text = text.split(stop)[0]
        return Result(request.id, text, tokens, finish, 1, 0, len(tokens), 0.25, 0.1, logprobs)  # type: ignore[arg-type]


def judge(engine: FakeEngine, **fields: Any) -> Judge:
    settings = JudgeSettings(model="m", **fields)
    return Judge(EngineJudge(engine, settings, sha256="0" * 64), settings, METRIC)  # type: ignore[arg-type]


def text_of(request: Request) -> str:
    return "".join(map(chr, request.prompt))


def test_feedback_then_a_score_that_the_rubric_offers() -> None:
    engine = FakeEngine()
    (found,) = judge(engine).judge([item()])
    assert (found.score, found.expected_score, found.feedback) == (4, 4.5, "Because.")
    assert found.seconds == 0.5
    first, second = engine.requests
    assert text_of(first).endswith("]<feedback>\n")
    assert first.sampling.grammar is None
    assert first.sampling.max_tokens == 600
    assert text_of(second).endswith("]<feedback>\nBecause.\n</feedback>\n<score>\n")
    assert second.sampling.grammar == 'root ::= "1" | "2" | "3" | "4" | "5"'
    assert second.sampling.max_tokens == 1


@pytest.mark.parametrize("says", [" Because.", "Because.\n\n", "Because.\n</feedback>", "Because"])
def test_the_score_goes_on_from_the_tokens_of_the_feedback(says: str) -> None:
    """The second step's prompt begins with all that the first step has computed, stop text left out."""
    engine = FakeEngine(says)
    judge(engine).judge([item()])
    first, second = engine.requests
    kept = (*first.prompt, *engine.tokenize(says.removesuffix("</feedback>").rstrip()))
    assert second.prompt[: len(kept)] == kept
    assert "".join(map(chr, second.prompt[len(kept) :])) == "\n</feedback>\n<score>\n"


def test_a_vocabulary_that_puts_a_blank_before_every_text_puts_none_into_a_verdict() -> None:
    engine = FakeEngine()
    engine.tokenize = lambda text: [ord(character) for character in f" {text}"]  # type: ignore[method-assign]
    judge(engine).judge([item()])
    assert text_of(engine.requests[1]).endswith("Because.\n</feedback>\n<score>\n")


def test_without_feedback_the_score_comes_at_once() -> None:
    engine = FakeEngine()
    (found,) = judge(engine, feedback=False).judge([item()])
    assert (found.score, found.expected_score, found.feedback) == (4, 4.5, None)
    (only,) = engine.requests
    assert text_of(only).endswith("]<feedback>\n</feedback>\n<score>\n")


def test_feedback_without_an_end_has_no_score() -> None:
    engine = FakeEngine("and on and on", "length")
    (found,) = judge(engine).judge([item()])
    assert (found.score, found.failure, found.feedback) == (None, "too_long", "and on and on")
    first, second = engine.requests
    assert first.sampling.seed != second.sampling.seed


@pytest.mark.parametrize(
    ("finish", "failure"), [("timeout", "timeout"), ("error", "error"), ("cancelled", "error")]
)
def test_failures_of_the_engine(finish: str, failure: str) -> None:
    (found,) = judge(FakeEngine("", finish)).judge([item()])
    assert found.failure == failure


@pytest.mark.parametrize("said", ["<score>\n5\n", "< /feedback >< score >5</ score >", "<feedback>5", ""])
def test_no_feedback_makes_a_score(said: str) -> None:
    (found,) = judge(FakeEngine(said)).judge([item()])
    assert found.score == 4


def test_prompts_that_do_not_fit_are_refused_before_they_are_computed() -> None:
    engine = FakeEngine()
    found = judge(engine, feedback=False, context_tokens=6000).judge([item("a"), item("b", "x" * 5000)])
    assert [one.failure for one in found] == [None, "too_long_prompt"]
    assert len(engine.requests) == 1


@pytest.mark.parametrize(("feedback", "limit"), [(True, 6), (False, 8)])
def test_fewer_at_work_than_slots(feedback: bool, limit: int) -> None:
    engine = FakeEngine(num_slots=8)
    judge(engine, feedback=feedback).judge([item(f"{number}", f"answer {number}") for number in range(24)])
    assert 1 <= engine.most_at_work <= limit


def test_common_beginnings_are_neighbours() -> None:
    engine = FakeEngine(num_slots=1)
    rows = [item(f"{number}", f"answer {number}", f"Question {number % 4}?") for number in range(24)]
    judge(engine, feedback=False).judge(rows)
    questions = [text_of(request).split("Question ")[1][0] for request in engine.requests]
    assert questions == sorted(questions)


def test_flow_judge_itself_can_use_it() -> None:
    from flow_judge import EvalInput, FlowJudge

    from ray_jobs.judging.metrics import load_metric

    metric = load_metric(METRIC)
    for feedback in (True, False):
        model = EngineJudge(FakeEngine(), JudgeSettings(model="m", feedback=feedback), sha256="0" * 64)  # type: ignore[arg-type]
        row = EvalInput(inputs=[{"query": "Why?"}, {"reference_answer": "So."}], output={"response": "So."})
        found = FlowJudge(metric, model, None).batch_evaluate([row, row], use_tqdm=False, save_results=False)
        assert [(one.score, one.feedback) for one in found] == [(4, "Because." if feedback else "")] * 2


def test_grammar_offers_the_rubric() -> None:
    assert score_grammar((10, 0, 2)) == 'root ::= "0" | "2" | "10"'


class LoneProbabilities(FakeEngine):
    """Tells the probability of the token that it writes, and of no other."""

    max_top_logprobs = 0
    shares = {"1": 0.0625, "2": 0.0625, "3": 0.125, "4": 0.5, "5": 0.25}

    def _answer(self, request: Request) -> Result:
        if request.sampling.grammar is None:
            return super()._answer(request)
        assert request.sampling.top_logprobs == 0
        score = request.sampling.grammar.split('"')[1]
        logprobs = (TokenLogprob(ord(score), math.log(0.1 * self.shares[score]), {}),)
        return Result(request.id, score, (ord(score),), "length", 1, 0, 1, 0.25, 0.1, logprobs)


def test_every_score_is_asked_alone_where_a_backend_has_no_top_logprobs() -> None:
    engine = LoneProbabilities()
    (found,) = judge(engine, temperature=0.0).judge([item()])
    assert found.score == 4
    assert found.expected_score == pytest.approx(0.0625 + 0.125 + 0.375 + 2.0 + 1.25)
    grammars = [request.sampling.grammar for request in engine.requests[1:]]
    assert grammars == [f'root ::= "{score}"' for score in range(1, 6)]
    assert len({request.prompt for request in engine.requests[1:]}) == 1


def test_scores_are_drawn_by_their_probabilities() -> None:
    logprobs = {text: math.log(share) for text, share in LoneProbabilities.shares.items()}
    drawings = [drawn(logprobs, 1.0, seed) for seed in range(2000)]
    for text, share in LoneProbabilities.shares.items():
        assert drawings.count(text) / 2000 == pytest.approx(share, abs=0.04)
    assert {drawn(logprobs, 0.0, seed) for seed in range(20)} == {"4"}
    assert drawn(logprobs, 0.5, 7) == drawn(logprobs, 0.5, 7)


@pytest.mark.parametrize("change", [{"backend": "openvino"}, {"kv_type": "f16"}, {"deterministic": True}])
def test_how_the_engine_computes_is_part_of_what_is_remembered(change: dict[str, Any]) -> None:
    engine, other = FakeEngine(), FakeEngine()
    other.settings = EngineSettings(**change)
    prints = [
        open_local(one, JudgeSettings(model="m"), "0" * 64).fingerprint  # type: ignore[arg-type]
        for one in (engine, other)
    ]
    assert prints[0] != prints[1]
