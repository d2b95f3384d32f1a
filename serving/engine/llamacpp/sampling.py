"""Sampling: one chain of llama.cpp samplers per request.

Plain greedy requests take the largest logit directly: llama.cpp would first copy the vocabulary into
candidates, which costs ten times the search (about 150 us a token against 15 us for 49,152 entries).
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from serving.engine.errors import RequestError
from serving.engine.llamacpp.ambiguity import check_ways
from serving.engine.llamacpp.json_schema import grammar_of_schema
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.llamacpp.penalties import add_penalties, penalises
from serving.engine.types import Request, Sampling, TokenLogprob

_NO_TOKEN = "the grammar allows no further token"
_TOO_SLOW = "the grammar is ambiguous: too many ways to go on are open"

_LAST_SEED = llama_cpp.LLAMA_DEFAULT_SEED - 1
"""llama.cpp takes the one after it for any."""
_MAX_BIAS = 10_000.0
_MAX_GROUPS = 20_000
"""Of a grammar: llama.cpp's parser calls itself for each that stands within another."""
_LIKELIEST = 256
"""Tokens among which the best that a grammar allows is looked for first."""
_MAX_ACCEPT_S = 0.25
"""Of processor time for a grammar to take in a token: a hundredth is much. The next may take many times as
long, and llama.cpp cannot be interrupted."""
_MAX_APPLY_S = 1.0
"""For a grammar to look at all tokens, which are a quarter of a million in some vocabularies."""

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class LlamaSampler:
    """A request's chain and, where it asks for one, its grammar."""

    def __init__(self, model: LlamaModel, request: Request) -> None:
        sampling = request.sampling
        self._num_vocab = model.num_vocab
        self._top_logprobs = sampling.top_logprobs
        self._candidates: npt.NDArray[Any] | None = None
        reweighs = bool(sampling.logit_bias) or penalises(sampling)
        self._takes_largest = sampling.is_greedy and not reweighs
        self._grammar = _open_grammar(model, grammar_of(sampling))
        self._is_too_slow = False
        self._chain: Any = _open_chain(model, request)

    def close(self) -> None:
        """Free the native state; further calls do nothing."""
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def sample(self, context: Any, row: int) -> tuple[int, TokenLogprob | None]:
        """The token after row `row` of the context's latest batch."""
        if self._grammar is not None:
            token = self._sample_with_grammar(context, row)
        elif self._takes_largest:
            token = int(self._logits(context, row).argmax())
        else:
            token = int(llama_cpp.llama_sampler_sample(self._chain, context, row))
        if self._top_logprobs is None:
            return token, None
        return token, logprob_of(self._logits(context, row), token, self._top_logprobs)

    def _logits(self, context: Any, row: int) -> npt.NDArray[np.float32]:
        return logits_of(context, row, self._num_vocab)

    def _sample_with_grammar(self, context: Any, row: int) -> int:
        """Sample freely and keep what the grammar allows: to check one token costs less than to check them
        all."""
        if self._is_too_slow:
            raise ValueError(_TOO_SLOW)
        logits = self._logits(context, row)
        token = int(logits.argmax()) if self._takes_largest else self._choose(logits, constrained=False)
        if not self._allows(token):
            token = self._choose_allowed(logits)
        with self._watched(_MAX_ACCEPT_S):
            llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    @contextmanager
    def _watched(self, limit_s: float) -> Iterator[None]:
        """If the block takes longer, this token is the request's last."""
        began_s = time.thread_time()
        yield
        self._is_too_slow |= time.thread_time() - began_s > limit_s

    def _constrain(self, array: Any) -> None:
        """Take away what the grammar forbids."""
        with self._watched(_MAX_APPLY_S):
            llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))

    def _choose_allowed(self, logits: npt.NDArray[np.float32]) -> int:
        """Raises ValueError if there is none: llama.cpp aborts on a token that its grammar forbids."""
        token = self._best_of_likeliest(logits) if self._takes_largest else None
        if token is None:
            token = self._choose(logits, constrained=True)
            if not self._allows(token):  # a sampler has made it of values beyond the range of a float
                raise ValueError(_NO_TOKEN)
        return token

    def _best_of_likeliest(self, logits: npt.NDArray[np.float32]) -> int | None:
        """The largest logit that the grammar allows, if it is among the first; to ask for all takes long."""
        number = min(_LIKELIEST, len(logits))
        some = np.argpartition(logits, -number)[-number:]
        candidates = np.zeros(len(some), _CANDIDATE)
        candidates["id"], candidates["logit"] = some, logits[some]
        self._constrain(_as_array(candidates))
        best = candidates[np.lexsort((candidates["id"], -candidates["logit"]))[0]]
        return int(best["id"]) if math.isfinite(best["logit"]) else None

    def _choose(self, logits: npt.NDArray[np.float32], *, constrained: bool) -> int:
        if self._candidates is None:
            self._candidates = np.zeros(self._num_vocab, _CANDIDATE)
        self._candidates["id"] = np.arange(self._num_vocab, dtype=np.int32)
        self._candidates["logit"] = logits
        array = _as_array(self._candidates)
        if constrained:
            self._constrain(array)
            if not np.isfinite(self._candidates["logit"]).any():
                raise ValueError(_NO_TOKEN)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        one = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        self._constrain(_as_array(one))
        return math.isfinite(one["logit"][0])


def logits_of(context: Any, row: int, num_vocab: int) -> npt.NDArray[np.float32]:
    """After row `row` of the context's latest batch, shape (vocabulary,); the memory is the context's own."""
    address = ctypes.addressof(llama_cpp.llama_get_logits_ith(context, row).contents)
    memory: Any = (ctypes.c_float * num_vocab).from_address(address)
    logits: npt.NDArray[np.float32] = np.frombuffer(memory, np.float32)
    return logits


def check_sampling(sampling: Sampling, num_vocab: int) -> None:
    """Raises RequestError `bad_sampling` for values outside their range, naming the field."""
    ranges = {
        "temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repeat_penalty": (0.01, 10.0),
        "presence_penalty": (-100.0, 100.0), "frequency_penalty": (-100.0, 100.0), "top_k": (0, 2**31 - 1),
        "max_tokens": (1, 2**31 - 1), "seed": (0, 2**32 - 1), "top_logprobs": (0, num_vocab),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise RequestError("bad_sampling", f"{name} must be between {low} and {high}, not {value}")
    if not all(isinstance(stop, str) and stop for stop in sampling.stop):
        raise RequestError("bad_sampling", "a stop string must be text, and not empty")
    for token, bias in sampling.logit_bias.items():
        if not (0 <= token < num_vocab and abs(bias) <= _MAX_BIAS):
            raise RequestError(
                "bad_sampling", f"logit_bias: token {token} or its bias {bias} is out of range"
            )
    if sampling.grammar is not None and sampling.json_schema is not None:
        raise RequestError("bad_sampling", "grammar and json_schema exclude each other")


def grammar_of(sampling: Sampling) -> str | None:
    """What constrains the answer, as GBNF; None: nothing. Raises RequestError `bad_json_schema`."""
    return sampling.grammar if sampling.json_schema is None else grammar_of_schema(sampling.json_schema)


def check_grammar(model: LlamaModel, grammar: str | None) -> None:
    """Raises RequestError `bad_grammar` for one that does not compile, or that is too ambiguous."""
    opened = _open_grammar(model, grammar)
    if opened is not None:
        llama_cpp.llama_sampler_free(opened)


def _open_grammar(model: LlamaModel, grammar: str | None) -> Any:
    if grammar is None:
        return None
    if "\0" in grammar:
        raise RequestError("bad_grammar", "the grammar contains a NUL character")
    if not grammar.strip():
        raise RequestError("bad_grammar", "the grammar is empty")
    if grammar.count("(") > _MAX_GROUPS:
        raise RequestError("bad_grammar", f"the grammar has more than {_MAX_GROUPS} groups")
    try:
        text = grammar.encode()
    except UnicodeEncodeError as error:
        raise RequestError("bad_grammar", "the grammar is not valid Unicode") from error
    try:
        check_ways(grammar)
    except (ValueError, RecursionError) as error:
        raise RequestError("bad_grammar", f"the grammar does not compile: {error}"[:300]) from error
    sampler = llama_cpp.llama_sampler_init_grammar(model.vocab, text, b"root")
    if not sampler:
        raise RequestError("bad_grammar", "the grammar does not compile, or has no `root` rule")
    return sampler


def _open_chain(model: LlamaModel, request: Request) -> Any:
    """The samplers in llama.cpp's usual order; those that would change nothing are left out."""
    sampling = request.sampling
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    add = llama_cpp.llama_sampler_chain_add
    if sampling.logit_bias:
        biases = (llama_cpp.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
        add(chain, llama_cpp.llama_sampler_init_logit_bias(model.num_vocab, len(biases), biases))
    add_penalties(chain, model.num_vocab, request)
    if sampling.is_greedy:
        add(chain, llama_cpp.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        add(chain, llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1.0:
        add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        add(chain, llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
    add(chain, llama_cpp.llama_sampler_init_dist(min(sampling.seed, _LAST_SEED)))
    return chain


def _as_array(candidates: npt.NDArray[Any]) -> Any:
    data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    return llama_cpp.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)


def logprob_of(logits: npt.NDArray[np.float32], token: int, num_top: int) -> TokenLogprob:
    """How likely a token is, and the `num_top` likeliest ones."""
    peak = float(logits.max())
    log_total = peak + math.log(float(np.exp(logits - peak).sum()))
    top: dict[int, float] = {}
    if num_top > 0:
        likeliest = np.argpartition(logits, -num_top)[-num_top:]
        for index in likeliest[np.argsort(-logits[likeliest], kind="stable")]:
            top[int(index)] = float(logits[index]) - log_total
    return TokenLogprob(token, float(logits[token]) - log_total, top)
