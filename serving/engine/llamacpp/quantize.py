"""Quantised copies of a GGUF model, made whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import llama_cpp

from serving.engine.errors import ModelLoadError
from serving.engine.gguf_check import check_header
from serving.engine.llamacpp import library

_BF16 = 30
"""ggml_type of ggml.h."""


class Recipe(NamedTuple):
    ftype: int
    """llama_ftype of llama.h."""
    pure: bool = False
    """Whether the token embedding and the output layer are quantised like the rest."""
    embedding: int | None = None
    """ggml_type of the token embedding and the output layer; None: llama.cpp's choice."""


RECIPES = {
    "f16": Recipe(1),
    "bf16": Recipe(32),
    "q8_0": Recipe(7),
    "q4_0": Recipe(2),
    "q4_0-pure": Recipe(2, pure=True),
    "q4_0-bf16": Recipe(2, embedding=_BF16),
    "q4_k_m": Recipe(15),
}
"""`-pure` and `-bf16` say what the token embedding and the output layer are."""


def quantize(source: str | Path, target: str | Path, recipe: str, *, num_threads: int = 1) -> Path:
    """Write `source` in another quantisation; one that is quantised already is dequantised first.

    Raises ModelLoadError for an unsound source, or if llama.cpp refuses; ValueError for an unknown recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is none of {', '.join(RECIPES)}")
    check_header(source)
    library.start()
    target = Path(target)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure = RECIPES[recipe].ftype, RECIPES[recipe].pure
    if (embedding := RECIPES[recipe].embedding) is not None:
        params.token_embedding_type = params.output_tensor_type = embedding
    params.allow_requantize, params.nthread = True, num_threads
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(handle)
    try:
        library.take_errors()
        if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(partial), params) != 0:
            raise ModelLoadError(f"{source}: cannot be quantised to {recipe}: {library.take_errors()}")
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)
    return target
