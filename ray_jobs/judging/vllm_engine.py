"""vLLM as the judge's engine, in this process: what `EngineJudge` asks of an engine, asked of vLLM's.

flow-judge's own vLLM class is made for vllm 0.6.2, cannot force its format and tells no probabilities. Here
requests of all threads are computed together by vLLM's scheduler, a grammar holds the score, and the
probabilities at its place come back. On GPUs, or wherever the vLLM that is installed runs.
"""

import atexit
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.orpo.tokens import prompt_tokens
from ray_jobs.records import Message
from serving.engine.types import FinishReason, Request, Result, Sampling, TokenLogprob

INSTALL = "pip install 'orpo-on-ray[vllm]'"
MAX_TOP_LOGPROBS = 64
"""More than a rubric has scores: under the grammar these are the likeliest."""
BATCH_TOKENS_ON_CPUS = 4096
CLOSE_S = 30.0
SHARE_OF_GPU = 0.9
"""Of the memory of the part of a GPU that the judge may have; vLLM's own default."""
_BEFORE_IMPORT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no child that outlives a killed actor
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB, and not half of the memory for each engine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engines of one node would all bind to its first cores
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_ANCHOR = "a"


@dataclass(frozen=True)
class NumSlots:
    """As `serving.engine.metrics.EngineMetrics` has it: requests that are computed together."""

    num_slots: int


@dataclass
class _Open:
    """A request that vLLM works on. Times are of time.monotonic."""

    request: Request
    future: "Future[Result]"
    began_s: float

    @property
    def deadline(self) -> float | None:
        limit = self.request.deadline_s
        return None if limit is None else self.began_s + limit


class VllmEngine:
    """Thread-safe. One thread steps vLLM for all requests, until `close` or the end of the process.

    `llm`: a vllm.LLMEngine that computes in this process; `tokenizer`: the model's, as transformers has it.
    """

    max_top_logprobs = MAX_TOP_LOGPROBS

    def __init__(self, llm: Any, tokenizer: Any, *, context_tokens: int, num_slots: int) -> None:
        self.context_tokens = context_tokens
        self.chat = _Chat(tokenizer)
        self._llm = llm
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._num_slots = num_slots
        self._anchor = self.tokenize(_ANCHOR)[-1:]
        self._submitted: queue.SimpleQueue[_Open | None] = queue.SimpleQueue()
        self._open: dict[str, _Open] = {}
        self._num_requests = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Ends when all that was submitted has ended, or after CLOSE_S."""
        self._submitted.put(None)
        self._thread.join(CLOSE_S)

    def submit(self, request: Request) -> "Future[Result]":
        """The result to come. One that vLLM refuses ends with an error; the future raises ModelError for all
        requests once vLLM itself fails."""
        opened = _Open(request, Future(), time.monotonic())
        self._submitted.put(opened)
        return opened.future

    def tokenize(self, text: str) -> list[int]:
        """Token ids of text; names of control tokens in it stay text."""
        with self._lock:
            encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of tokens that stand within a text: decoders strip a blank at the start of one."""
        before, whole = self._decode(self._anchor), self._decode([*self._anchor, *tokens])
        return whole[len(before) :]

    def metrics(self) -> NumSlots:
        return NumSlots(self._num_slots)

    def _decode(self, tokens: Sequence[int]) -> str:
        with self._lock:
            return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _run(self) -> None:
        failure: ModelError | None = None
        while self._take(failure) or self._open:
            if failure is None:
                try:
                    self._step()
                except Exception as error:
                    failure = ModelError(f"judge.backend: vllm failed: {' '.join(str(error).split())[:500]}")
                    failure.__cause__ = error
                    for opened in self._open.values():
                        opened.future.set_exception(failure)
                    self._open.clear()

    def _take(self, failure: ModelError | None) -> bool:
        """Hands what was submitted to vLLM; waits for the first where nothing else is to be done.

        Returns whether the engine is still open.
        """
        while not self._closed and not (self._open and self._submitted.empty()):
            opened = self._submitted.get()
            if opened is None:
                self._closed = True
                break
            if failure is not None:
                opened.future.set_exception(failure)
                continue
            self._num_requests += 1
            name, request = str(self._num_requests), opened.request
            try:
                self._llm.add_request(
                    name, {"prompt_token_ids": list(request.prompt)}, sampling_params(request.sampling)
                )
            except Exception as error:
                opened.future.set_result(_ended(opened, "error", error=" ".join(str(error).split())[:500]))
            else:
                self._open[name] = opened
        return not self._closed

    def _step(self) -> None:
        for output in self._llm.step():
            if output.finished and (opened := self._open.pop(output.request_id, None)) is not None:
                opened.future.set_result(self._result(opened, output))
        now = time.monotonic()
        late = [name for name, opened in self._open.items() if (opened.deadline or now) < now]
        if late:
            self._llm.abort_request(late)
        for name in late:
            opened = self._open.pop(name)
            opened.future.set_result(_ended(opened, "timeout"))

    def _result(self, opened: _Open, output: Any) -> Result:
        """`stop_reason` is the text that ended the answer, or the id of a token, None for the end token."""
        answer = output.outputs[0]
        tokens = list(answer.token_ids)
        ended_by_token = answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str)
        kept = tokens[:-1] if ended_by_token else tokens
        logprobs = None if answer.logprobs is None else tuple(map(_logprob, kept, answer.logprobs))
        return _ended(
            opened,
            answer.finish_reason if answer.finish_reason in ("stop", "length") else "error",
            text=answer.text,
            tokens=tuple(kept),
            logprobs=logprobs,
            num_cached=output.num_cached_tokens or 0,
        )


class _Chat:
    """The model's chat template; control tokens in messages stay text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        with self._lock:
            return prompt_tokens(
                self._tokenizer, [Message(message["role"], message["content"]) for message in messages]
            )


def open_vllm(settings: JudgeSettings, gpus: float = 0.0) -> tuple[VllmEngine, str]:
    """The engine of a config's judge, and what of it decides its words.

    `gpus`: the part of a GPU that the judge may have, or how many it is spread over. Raises ConfigError where
    vllm is not installed, ModelError with vLLM's reason where it cannot open the model.
    """
    for name, value in _BEFORE_IMPORT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(f"judge.backend: vllm cannot be used here ({INSTALL}): {error}") from error
    from transformers import AutoTokenizer
    from vllm.platforms import current_platform

    options: dict[str, Any] = {
        "model": settings.model,
        "revision": settings.revision,
        "max_model_len": settings.context_tokens,
        "max_logprobs": MAX_TOP_LOGPROBS,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        # A prompt that is cut and a seed end vLLM (0.32) there: "CPU Generator does not use offset".
        options |= {"enable_chunked_prefill": False, "enforce_eager": True}
        options["max_num_batched_tokens"] = max(BATCH_TOKENS_ON_CPUS, settings.context_tokens)
    if 0 < gpus < 1:
        options["gpu_memory_utilization"] = SHARE_OF_GPU * gpus
    elif gpus > 1:
        options["tensor_parallel_size"] = int(gpus)
    try:
        llm = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**options))
        tokenizer = AutoTokenizer.from_pretrained(settings.model, revision=settings.revision)
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(f"judge.model: vLLM cannot open {settings.model}: {reason}") from error
    config = llm.vllm_config
    run = f"vllm {vllm.__version__}, {config.model_config.dtype}"
    slots = config.scheduler_config.max_num_seqs
    return VllmEngine(llm, tokenizer, context_tokens=settings.context_tokens, num_slots=slots), run


def sampling_params(sampling: Sampling) -> Any:
    """vLLM's SamplingParams of what a judge asks for; grammars are GBNF, which vLLM's EBNF is modelled on."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    grammar = sampling.grammar
    return SamplingParams(
        temperature=sampling.temperature,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        logprobs=sampling.top_logprobs,
        structured_outputs=None if grammar is None else StructuredOutputsParams(grammar=grammar),
    )


def _logprob(token: int, top: Any) -> TokenLogprob:
    """`top`: token id -> vLLM's Logprob, the token's own among them."""
    found = {other: float(choice.logprob) for other, choice in top.items()}
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]))
    return TokenLogprob(token, found[token], ordered)


def _ended(
    opened: _Open,
    finish: FinishReason,
    *,
    text: str = "",
    tokens: tuple[int, ...] = (),
    logprobs: tuple[TokenLogprob, ...] | None = None,
    num_cached: int = 0,
    error: str | None = None,
) -> Result:
    return Result(
        id=opened.request.id,
        text=text,
        tokens=tokens,
        finish_reason=finish,
        num_prompt_tokens=len(opened.request.prompt),
        num_cached_tokens=num_cached,
        num_answer_tokens=len(tokens),
        seconds=time.monotonic() - opened.began_s,
        first_token_s=None,
        logprobs=logprobs,
        error=error,
    )
