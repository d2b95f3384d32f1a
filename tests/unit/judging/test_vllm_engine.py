"""vLLM asked as an engine: what its scheduler says, as results. vLLM itself is a fake here."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.judging import vllm_engine
from ray_jobs.judging.engine_judge import EngineJudge
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_remote
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.judging.vllm_engine import VllmEngine
from serving.engine.types import Request, Sampling

from .fakes import item

END = 0


class Characters:
    """A tokenizer whose tokens are characters, and whose decoder strips a blank at the start of a text."""

    bos_token_id = None
    chat_template = "there is one"
    all_special_tokens: list[str] = []
    added_tokens_decoder: dict[int, Any] = {}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        assert options.get("add_special_tokens") is False
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, tokens: list[int], **options: Any) -> str:
        return "".join(map(chr, tokens)).removeprefix(" ")

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return "".join(f"[{message['content']}]" for message in messages)


class FakeLLM:
    """Answers each request with `Because.` and a stop text, or with what a grammar of scores wants, one step
    after it came; those with a 9 in their prompt never end, and an empty prompt is refused."""

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[list[int], Sampling]] = {}
        self.most_together = 0
        self.aborted: list[str] = []
        self.fails = False
        self.go = threading.Event()
        self.go.set()

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Sampling) -> None:
        if not prompt["prompt_token_ids"]:
            raise ValueError("an empty\nprompt")
        self.waiting[name] = (prompt["prompt_token_ids"], params)

    def step(self) -> list[Any]:
        self.go.wait()
        if self.fails:
            raise RuntimeError("out of\nmemory")
        self.most_together = max(self.most_together, len(self.waiting))
        ended = [name for name, (prompt, _) in self.waiting.items() if ord("9") not in prompt]
        return [self.output(name, *self.waiting.pop(name)) for name in ended]

    def output(self, name: str, prompt: list[int], params: Sampling) -> Any:
        if params.grammar is not None:
            top = {ord("4"): logprob(-0.7), ord("5"): logprob(-0.6), ord("1"): logprob(float("-inf"))}
            answer = SimpleNamespace(
                text="4", token_ids=[ord("4")], finish_reason="length", stop_reason=None, logprobs=[top]
            )
        elif params.stop:
            written = "Because." + params.stop[0]
            answer = SimpleNamespace(
                text="Because.", token_ids=[ord(character) for character in written], finish_reason="stop",
                stop_reason=params.stop[0], logprobs=None,
            )  # fmt: skip
        else:
            answer = SimpleNamespace(
                text="ab", token_ids=[ord("a"), ord("b"), END], finish_reason="stop", stop_reason=None,
                logprobs=None,
            )  # fmt: skip
        return SimpleNamespace(request_id=name, finished=True, outputs=[answer], num_cached_tokens=3)

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            del self.waiting[name]


def logprob(value: float) -> Any:
    return SimpleNamespace(logprob=value)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    monkeypatch.setattr(vllm_engine, "sampling_params", lambda sampling: sampling)
    monkeypatch.setattr(vllm_engine, "prompt_tokens", lambda tokenizer, messages: (1, 2, 3))
    return FakeLLM()


@pytest.fixture
def engine(llm: FakeLLM) -> Iterator[VllmEngine]:
    opened = VllmEngine(llm, Characters(), context_tokens=10_000, num_slots=8)
    yield opened
    llm.go.set()
    llm.fails = True  # ends what would never end
    opened.close()


def ask(prompt: str, **fields: Any) -> Request:
    return Request("r", tuple(map(ord, prompt)), Sampling(), **fields)


def test_the_token_that_ends_an_answer_is_not_part_of_it(engine: VllmEngine) -> None:
    result = engine.submit(ask("hello")).result(timeout=30)
    assert (result.text, result.tokens, result.finish_reason) == ("ab", (ord("a"), ord("b")), "stop")
    assert (result.num_prompt_tokens, result.num_cached_tokens, result.num_answer_tokens) == (5, 3, 2)


def test_requests_are_computed_together(engine: VllmEngine, llm: FakeLLM) -> None:
    llm.go.clear()
    pending = [engine.submit(ask("a")) for _ in range(20)]
    llm.go.set()
    assert {one.result(timeout=30).text for one in pending} == {"ab"}
    assert llm.most_together >= 19  # the first may have begun alone


def test_what_vllm_refuses_ends_by_itself(engine: VllmEngine) -> None:
    refused = engine.submit(ask("")).result(timeout=30)
    assert (refused.finish_reason, refused.error) == ("error", "an empty prompt")
    assert engine.submit(ask("a")).result(timeout=30).finish_reason == "stop"


def test_a_late_request_is_taken_back(engine: VllmEngine, llm: FakeLLM) -> None:
    assert engine.submit(ask("9", deadline_s=0.01)).result(timeout=30).finish_reason == "timeout"
    assert llm.aborted == ["1"]
    assert llm.waiting == {}


def test_a_failure_of_vllm_ends_all(engine: VllmEngine, llm: FakeLLM) -> None:
    pending = engine.submit(ask("9"))
    llm.fails = True
    for one in (pending, engine.submit(ask("a"))):
        with pytest.raises(ModelError, match=r"judge\.backend: vllm failed: out of memory"):
            one.result(timeout=30)


def test_close_waits_for_what_was_submitted(llm: FakeLLM) -> None:
    engine = VllmEngine(llm, Characters(), context_tokens=100, num_slots=8)
    pending = [engine.submit(ask("a")) for _ in range(5)]
    engine.close()
    assert all(one.done() for one in pending)


def test_text_within_a_text_keeps_its_blank(engine: VllmEngine) -> None:
    assert engine.detokenize([ord(" "), ord("x")]) == " x"
    assert engine.detokenize([]) == ""


def test_the_judge_scores_through_it(engine: VllmEngine) -> None:
    settings = JudgeSettings(model="m", backend="vllm")
    judge = Judge(EngineJudge(engine, settings, sha256="0" * 64), settings, "RESPONSE_CORRECTNESS_5POINT")
    judged = judge.judge([item("a"), item("b", "Another.")])
    assert [(one.score, one.feedback, one.failure) for one in judged] == [(4, "Because.", None)] * 2
    assert judged[0].expected_score == pytest.approx(4 + 1 / (1 + 2.718281828**-0.1))


def test_without_vllm_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    named = r"judge\.backend: vllm cannot be used here \(pip install 'orpo-on-ray\[vllm\]'"
    with pytest.raises(ConfigError, match=named):
        open_remote(JudgeSettings(model="flowaicom/Flow-Judge-v0.1", backend="vllm"))
