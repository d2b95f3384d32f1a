"""One engine for GGUF models on CPUs: for plain Python, Ray Data actors and Serve alike.

>>> from serving.engine import Engine, EngineSettings, Request, Sampling
>>> with Engine.open("model.gguf", EngineSettings(cores=2)) as engine:
...     prompt = engine.chat.render([{"role": "user", "content": "Name a colour."}])
...     result, = engine.generate([Request("a", prompt, Sampling(max_tokens=16))])

Names are imported on first use: importing this package loads no native library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.engine.chat import ChatTemplate
    from serving.engine.cores import CoreLease
    from serving.engine.engine import Engine
    from serving.engine.errors import (
        CoresUnavailable,
        EngineError,
        ModelLoadError,
        ModelMismatch,
        RequestError,
    )
    from serving.engine.gguf_check import verify_model
    from serving.engine.metrics import EngineMetrics
    from serving.engine.settings import EngineSettings
    from serving.engine.stream import Stream
    from serving.engine.tokenizer import Tokenizer
    from serving.engine.types import Delta, Request, Result, Sampling, TokenLogprob

_HOMES = {
    "chat": ("ChatTemplate",),
    "cores": ("CoreLease",),
    "engine": ("Engine",),
    "errors": ("CoresUnavailable", "EngineError", "ModelLoadError", "ModelMismatch", "RequestError"),
    "gguf_check": ("verify_model",),
    "metrics": ("EngineMetrics",),
    "settings": ("EngineSettings",),
    "stream": ("Stream",),
    "tokenizer": ("Tokenizer",),
    "types": ("Delta", "Request", "Result", "Sampling", "TokenLogprob"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ChatTemplate",
    "CoreLease",
    "CoresUnavailable",
    "Delta",
    "Engine",
    "EngineError",
    "EngineMetrics",
    "EngineSettings",
    "ModelLoadError",
    "ModelMismatch",
    "Request",
    "RequestError",
    "Result",
    "Sampling",
    "Stream",
    "TokenLogprob",
    "Tokenizer",
    "verify_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
