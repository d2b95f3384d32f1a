"""Quantised copies of a GGUF model, made whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import llama_cpp

from serving.engine.errors import ModelLoadError
from serving.engine.gguf_check import check_header
from serving.engine.llamacpp import library

RECIPES = {
    "f16": (1, False),
    "q8_0": (7, False),
    "q4_0": (2, False),
    "q4_0-pure": (2, True),
    "q4_k_m": (15, False),
}
"""Recipe -> (llama_ftype, whether the embedding and the output matrix are quantised like the rest)."""


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
    params.ftype, params.pure = RECIPES[recipe]
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
