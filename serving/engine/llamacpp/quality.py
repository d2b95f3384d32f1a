"""What a quantisation costs: perplexity, and how often its likeliest token is the reference's."""

from __future__ import annotations

import math

import llama_cpp
import numpy as np
import numpy.typing as npt

from serving.engine.errors import EngineError
from serving.engine.llamacpp.model import LlamaModel


def next_token_logits(
    path: str, text: str, max_tokens: int = 512, num_at_once: int | None = None
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Token ids (T) of a text and the model's logits (T, V) after each of them, computed `num_at_once` at a
    time."""
    model = LlamaModel.open(path)
    tokens = model.tokenize(text.encode(), special=False, add_bos=True)[:max_tokens]
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = max_tokens
    params.n_ubatch = num_at_once or max_tokens
    context = llama_cpp.llama_init_from_model(model.handle, params)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
    batch.n_tokens = len(tokens)
    try:
        if llama_cpp.llama_decode(context, batch) != 0:
            raise EngineError(f"{path}: a forward pass over {len(tokens)} tokens fails")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(tokens), model.num_vocab))
        return tokens, np.array(logits)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        model.close()


def perplexity(tokens: list[int], logits_TV: npt.NDArray[np.float32]) -> float:
    """exp of the mean negative log-likelihood of each token after the first."""
    peaks = logits_TV.max(axis=1, keepdims=True)
    log_totals = peaks[:, 0] + np.log(np.exp(logits_TV - peaks).sum(axis=1))
    following = np.array(tokens[1:])
    losses = log_totals[:-1] - logits_TV[np.arange(len(following)), following]
    return math.exp(float(losses.mean()))


def greedy_agreement(logits_TV: npt.NDArray[np.float32], reference_TV: npt.NDArray[np.float32]) -> float:
    """Share of positions with the same likeliest token, 0 to 1."""
    return float((logits_TV.argmax(axis=1) == reference_TV.argmax(axis=1)).mean())
