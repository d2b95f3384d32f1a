"""Does a model compute? A few tokens through all layers, for `gguf_check`'s child process."""

from __future__ import annotations

import math

import llama_cpp

from serving.engine.errors import ModelLoadError
from serving.engine.llamacpp.model import LlamaModel

NUM_TOKENS = 8


def try_model(model: LlamaModel) -> None:
    """Raises ModelLoadError if a forward pass fails or gives no finite logits."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = 64, 8, 8, 1
    context = llama_cpp.llama_init_from_model(model.handle, params)
    if not context:
        raise ModelLoadError(f"{model.path}: no context can be made for it")
    tokens = (llama_cpp.llama_token * NUM_TOKENS)()  # more than one: kernels for one row and for many differ
    status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, NUM_TOKENS))
    if status != 0:
        raise ModelLoadError(f"{model.path}: a forward pass fails with status {status}")
    logits = llama_cpp.llama_get_logits(context)
    if not all(math.isfinite(logits[index]) for index in range(model.num_vocab)):
        raise ModelLoadError(f"{model.path}: its logits are not finite")
    llama_cpp.llama_free(context)
