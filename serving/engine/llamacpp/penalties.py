"""Penalties on tokens that were said before: llama.cpp's own on repetition, and OpenAI's two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp

from serving.engine.types import Request, Sampling

PENALTY_TOKENS = 64
"""How far back the repetition penalty looks, in tokens; llama.cpp's default."""
_MAX_TOKENS = 1 << 20
"""Of an answer: memory is taken for all at once."""


def penalises(sampling: Sampling) -> bool:
    return sampling.repeat_penalty != 1.0 or _penalises_answer(sampling)


def add_penalties(chain: Any, num_vocab: int, request: Request) -> None:
    """Add the samplers that a request needs, and have them see what they count of its prompt.

    Repetition: the last tokens of prompt and answer, by custom. Presence and frequency: the answer, all of
    it, and not the prompt, whose template has tokens that end turns: with a penalty on these answers run on.
    """
    sampling = request.sampling
    if sampling.repeat_penalty != 1.0:
        penalties = (PENALTY_TOKENS, sampling.repeat_penalty, 0.0, 0.0)
        _add(chain, num_vocab, penalties, request.prompt[-PENALTY_TOKENS:])
    if _penalises_answer(sampling):
        num_tokens = min(request.num_written + sampling.max_tokens, _MAX_TOKENS)
        penalties = (num_tokens, 1.0, sampling.frequency_penalty, sampling.presence_penalty)
        _add(chain, num_vocab, penalties, request.prompt[len(request.prompt) - request.num_written :])


def _add(chain: Any, num_vocab: int, penalties: tuple[int, float, float, float], seen: Sequence[int]) -> None:
    sampler = llama_cpp.llama_sampler_init_penalties(num_vocab, *penalties)
    for token in seen:
        llama_cpp.llama_sampler_accept(sampler, token)
    llama_cpp.llama_sampler_chain_add(chain, sampler)


def _penalises_answer(sampling: Sampling) -> bool:
    return (sampling.presence_penalty, sampling.frequency_penalty) != (0.0, 0.0)
