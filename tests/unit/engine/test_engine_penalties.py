"""Which tokens the penalties count: chains of llama.cpp's samplers over a vocabulary of eight tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
import pytest

from serving.engine.llamacpp.penalties import add_penalties, penalises
from serving.engine.types import Request, Sampling

NUM_VOCAB = 8


@contextmanager
def chain_of(request: Request) -> Iterator[Any]:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    add_penalties(chain, NUM_VOCAB, request)
    yield chain
    llama_cpp.llama_sampler_free(chain)


def logits_after(request: Request, answer: Sequence[int]) -> list[float]:
    """Of all tokens, each of which had a logit of 4."""
    data = (llama_cpp.llama_token_data * NUM_VOCAB)()
    for token in range(NUM_VOCAB):
        data[token] = llama_cpp.llama_token_data(token, 4.0, 0.0)
    array = llama_cpp.llama_token_data_array(data, NUM_VOCAB, -1, False)
    with chain_of(request) as chain:
        for token in answer:
            llama_cpp.llama_sampler_accept(chain, token)
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    logits = {array.data[at].id: array.data[at].logit for at in range(NUM_VOCAB)}
    return [float(np.float32(logits[token])) for token in range(NUM_VOCAB)]


def test_presence_and_frequency_count_the_answer_and_all_of_it() -> None:
    both = Sampling(presence_penalty=1.0, frequency_penalty=0.5, max_tokens=300)
    answer = [2, *[3] * 4, *[4] * 200]
    logits = logits_after(Request("a", (1, 1, 2, 7), both), answer)
    assert logits == [4, 4, 4 - 1.5, 4 - 3, 4 - 101, 4, 4, 4], "1 and 7 are in the prompt alone"


def test_what_an_earlier_request_wrote_of_an_answer_counts() -> None:
    request = Request("a", (1, 2, 2, 3), Sampling(presence_penalty=1.0), num_written=2)
    assert logits_after(request, [4]) == [4, 4, 3, 3, 3, 4, 4, 4]


def test_repetition_counts_the_last_tokens_of_prompt_and_answer() -> None:
    request = Request("a", (1, 2), Sampling(repeat_penalty=2.0))
    assert logits_after(request, [3]) == [4, 2, 2, 2, 4, 4, 4, 4]
    assert logits_after(request, [3] * 63) == [4, 4, 2, 2, 4, 4, 4, 4], "64 of them"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, max_tokens=2**31 - 1)])
def test_without_penalties_nothing_is_added(sampling: Sampling) -> None:
    assert not penalises(sampling)
    with chain_of(Request("a", (1,), sampling)) as chain:
        assert llama_cpp.llama_sampler_chain_n(chain) == 0


def test_the_longest_answer_takes_little_memory() -> None:
    request = Request("a", (1,), Sampling(presence_penalty=1.0, max_tokens=2**31 - 1))
    assert logits_after(request, [5])[5] == 3
