"""A GGUF judge in this process: no server, no port, no process group.

`EngineJudge` serves two callers. `Judge` asks it for completions with probabilities; flow_judge's own
`FlowJudge(metric, model)` can use it like any of its models.

flow-judge's format is forced, in two steps. The judge's turn is begun for it with `<feedback>`, and it writes
until it closes the tag or ends its turn. Then the turn is gone on with for it up to `<score>`, and a grammar
allows one of the rubric's scores. A grammar over the feedback too would have to look at the whole vocabulary
for every token of it, many times the cost of a small judge's own work. The second step goes on from the very
tokens of the first, which its slot still holds: fewer judgements are at work than the engine has slots, so
that a new one finds a slot that nobody comes back to.

A backend that tells no other probability than that of the token it writes (OpenVINO) is asked for every score
of the rubric by itself, each forced by a grammar of its own: its log-probability is the one that it had among
all tokens, so that the distribution is the same.

Without feedback the first step is left out, so that the feedback is empty: one token of work instead of
hundreds.
"""

import math
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ray_jobs.judging.backend import Call, Completion, Finish, OnDone, gathered
from ray_jobs.judging.expected import TokenChoice, one_begins_another
from ray_jobs.judging.flow import BaseFlowJudgeModel
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.records import row_seed, text_sha256
from serving.engine.settings import EngineSettings
from serving.engine.types import Request, Result, Sampling, TokenLogprob

FEEDBACK_START = "<feedback>\n"
SCORE_START = "\n</feedback>\n<score>\n"
SCORE_END = "\n</score>"

_FEEDBACK_STOPS = ("</feedback>", "<score>")

_TOP_LOGPROBS = 256
"""Tokens whose probabilities are kept at the score position: enough to hold every score of a rubric."""

_DIGITS = tuple(range(10))

_SPARE_SLOTS = 2
"""Slots for new judgements while others, between their two steps, have none but still need what is in it."""

_MAX_STOP_TOKENS = 16
"""More than the stop text and blanks before it can take."""


class ChatTemplate(Protocol):
    def render(self, messages: Sequence[dict[str, str]], /) -> Sequence[int]: ...


class Pending(Protocol):
    def result(self) -> Result: ...


class Slots(Protocol):
    @property
    def num_slots(self) -> int: ...


class Engine(Protocol):
    """What is used of serving.engine.Engine, and of vLLM's."""

    @property
    def chat(self) -> ChatTemplate: ...
    @property
    def context_tokens(self) -> int: ...
    def submit(self, request: Request, /) -> Pending: ...
    def tokenize(self, text: str, /) -> Sequence[int]: ...
    def detokenize(self, tokens: Sequence[int], /) -> str: ...
    @property
    def max_top_logprobs(self) -> int: ...
    def metrics(self) -> Slots: ...


class EngineJudge(BaseFlowJudgeModel):
    """Judges with an open engine.

    `sha256` is the judge file's; `fingerprint` says how it is run, see `fingerprint_of`. `scores` matters to
    flow_judge's callers alone: its models are not told the rubric. `adapter`: the engine's name of the
    adapter to judge with.
    """

    tokenizes = True

    def __init__(
        self,
        engine: Engine,
        settings: JudgeSettings,
        *,
        sha256: str,
        fingerprint: str = "",
        scores: Sequence[int] = _DIGITS,
        adapter: str | None = None,
    ) -> None:
        params = {"temperature": settings.temperature, "max_new_tokens": settings.max_verdict_tokens}
        super().__init__(settings.model, "llama_cpp", params)
        self.sha256 = sha256
        self.fingerprint = fingerprint
        self._engine = engine
        self._settings = settings
        self._scores = tuple(scores)
        self._adapter = adapter
        self._pieces: dict[int, str] = {}
        num_slots = engine.metrics().num_slots
        spare = _SPARE_SLOTS if settings.feedback else 0
        self._workers = ThreadPoolExecutor(max(1, num_slots - spare, num_slots // 2), "judge")

    def complete(self, calls: Sequence[Call], scores: Sequence[int], on_done: OnDone) -> list[Completion]:
        """All calls, neighbours by their prompts' common beginnings; callers on several threads share the
        slots."""
        prompts = {call.id: self._render(call.prompt) for call in calls}
        ordered = sorted(calls, key=lambda call: prompts[call.id])
        futures = [self._workers.submit(self._judge, call, prompts[call.id], scores) for call in ordered]
        return gathered(calls, futures, on_done)

    def num_prompt_tokens(self, prompt: str) -> int:
        return len(self._render(prompt))

    def _generate(self, prompt: str) -> str:
        return self._batch_generate([prompt])[0]

    def _batch_generate(self, prompts: list[str], use_tqdm: bool = True, **kwargs: object) -> list[str]:  # noqa: ARG002
        calls = [
            Call(str(index), prompt, row_seed(0, text_sha256(prompt)), self._settings.temperature)
            for index, prompt in enumerate(prompts)
        ]
        return [completion.text for completion in self.complete(calls, self._scores, lambda _: None)]

    def _render(self, prompt: str) -> tuple[int, ...]:
        return tuple(self._engine.chat.render([{"role": "user", "content": prompt.strip()}]))

    def _judge(self, call: Call, prompt: tuple[int, ...], scores: Sequence[int]) -> Completion:
        limit = min(self._settings.context_tokens, self._engine.context_tokens)
        room = limit - self._settings.max_verdict_tokens
        if len(prompt) > room:
            return Completion(
                call.id, "", "too_long_prompt", 0.0, (), f"{len(prompt)} tokens, room for {room}"
            )
        if not self._settings.feedback:
            return self._score(call, prompt, len(prompt), FEEDBACK_START.rstrip(), scores, 0.0)
        sampling = Sampling(
            temperature=call.temperature,
            seed=call.seed,
            max_tokens=self._settings.max_feedback_tokens,
            stop=_FEEDBACK_STOPS,
        )
        begun = (*prompt, *self._engine.tokenize(FEEDBACK_START))
        result = self._run(call, begun, sampling)
        feedback = result.text.rstrip()
        cut = result.finish_reason == "length" and self._settings.long_feedback == "score"
        if result.finish_reason != "stop" and not cut:
            written = FEEDBACK_START + feedback
            return Completion(call.id, written, _finish(result), result.seconds, (), result.error)
        kept, rest = self._kept(result.tokens, feedback)
        done = FEEDBACK_START + feedback[: len(feedback) - len(rest)]
        return self._score(call, (*begun, *kept), len(begun), rest, scores, result.seconds, done)

    def _kept(self, tokens: Sequence[int], text: str) -> tuple[Sequence[int], str]:
        """As many of the judge's own tokens as make a beginning of its text, and what is left of the text."""
        for count in range(len(tokens), max(0, len(tokens) - _MAX_STOP_TOKENS), -1):
            made = self._engine.detokenize(tokens[:count])
            if text.startswith(made):
                return tokens[:count], text[len(made) :]
        return (), text

    def _score(
        self,
        call: Call,
        prompt: tuple[int, ...],
        num_asked: int,
        written: str,
        scores: Sequence[int],
        seconds: float,
        done: str = "",
    ) -> Completion:
        """Has the judge score after what it has written: `done`, which the prompt holds, then `written`.

        `seconds` are those spent on that. `num_asked`: the prompt's tokens before it.
        """
        asked = (*prompt, *self._continuing(written + SCORE_START))
        begun = done + written + SCORE_START
        each = self._engine.max_top_logprobs == 0 and not one_begins_another(scores)
        groups = [[score] for score in scores] if each else [scores]
        samplings = [self._score_sampling(call, group) for group in groups]
        results = self._run_all(call, asked, samplings, num_written=len(asked) - num_asked)
        seconds += max(result.seconds for result in results)
        for result in results:
            if result.finish_reason not in ("stop", "length"):
                return Completion(call.id, begun, _finish(result), seconds, (), result.error)
        if each:
            top = {str(score): _logprob(result) for score, result in zip(scores, results, strict=True)}
            text = drawn(top, call.temperature, call.seed)
            chosen = [TokenChoice(text, top)]
        else:
            text = results[0].text
            chosen = [self._choice(choice) for choice in results[0].logprobs or ()]
        end = TokenChoice(SCORE_END, {})
        return Completion(call.id, begun + text + SCORE_END, "stop", seconds, (*chosen, end))

    def _score_sampling(self, call: Call, scores: Sequence[int]) -> Sampling:
        return Sampling(
            temperature=call.temperature,
            seed=call.seed,
            max_tokens=max(len(str(score)) for score in scores),
            grammar=score_grammar(scores),
            top_logprobs=min(_TOP_LOGPROBS, self._engine.max_top_logprobs),
        )

    def _continuing(self, text: str) -> Sequence[int]:
        """Tokens of text that goes on; some vocabularies put a blank before every text."""
        tokens = self._engine.tokenize(text)
        return tokens[1:] if self._piece(tokens[0]) == " " != text[0] else tokens

    def _run(self, call: Call, prompt: tuple[int, ...], sampling: Sampling) -> Result:
        return self._run_all(call, prompt, [sampling])[0]

    def _run_all(
        self, call: Call, prompt: tuple[int, ...], samplings: Sequence[Sampling], num_written: int = 0
    ) -> list[Result]:
        limit = self._settings.timeout_s
        requests = [
            Request(call.id, prompt, sampling, limit, self._adapter, num_written) for sampling in samplings
        ]
        pending = [self._engine.submit(request) for request in requests]
        return [one.result() for one in pending]

    def _choice(self, choice: TokenLogprob) -> TokenChoice:
        """Where two tokens have one text, the likelier one stands for it."""
        top = {self._piece(token): logprob for token, logprob in reversed(choice.top.items())}
        return TokenChoice(self._piece(choice.token_id), top)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._engine.detokenize([token])
        return self._pieces[token]


def fingerprint_of(run: EngineSettings) -> str:
    """What of an engine's settings may decide a judge's words."""
    return (
        f"{run.backend}, {run.kv_type}, flash attention {run.flash_attention}, "
        f"deterministic {run.deterministic}"
    )


def score_grammar(scores: Sequence[int]) -> str:
    """GBNF (https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md) of one of the rubric's
    scores."""
    return "root ::= " + " | ".join(f'"{score}"' for score in sorted(scores))


def drawn(logprobs: Mapping[str, float], temperature: float, seed: int) -> str:
    """One of the texts by chance, p ~ exp(logprob / temperature); at temperature 0 the likeliest."""
    if temperature == 0.0:
        return max(logprobs, key=lambda text: logprobs[text])
    peak = max(logprobs.values())
    weights = [math.exp((logprob - peak) / temperature) for logprob in logprobs.values()]
    return random.Random(seed).choices(list(logprobs), weights)[0]


def _logprob(result: Result) -> float:
    """Of the whole text; a score has one token in most vocabularies, and more in some."""
    return sum(choice.logprob for choice in result.logprobs or ())


def _finish(result: Result) -> Finish:
    return "error" if result.finish_reason == "cancelled" else result.finish_reason
