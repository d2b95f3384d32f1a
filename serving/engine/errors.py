"""What can go wrong in an engine.

EngineError
├── ModelLoadError      the model file is corrupt, truncated, foreign, or does not fit into memory
├── ModelMismatch       the file is sound, but cannot be used here (architecture, adapter, template)
├── CoresUnavailable    this node has no free cores left to own
└── RequestError        one request is at fault; the engine and its other requests live on
"""

from __future__ import annotations


class EngineError(Exception):
    """The engine cannot go on, or cannot be opened."""


class ModelLoadError(EngineError):
    """A model file cannot be loaded; the message names the file and the reason."""


class ModelMismatch(EngineError):
    """A sound model file that this engine, backend or adapter cannot use."""


class CoresUnavailable(EngineError):
    """Not enough cores are free on this node."""


class RequestError(EngineError):
    """One request is at fault.

    `code` is stable and meant for programs: `context_length_exceeded`, `empty_prompt`, `bad_grammar`,
    `bad_json_schema`, `bad_sampling`, `bad_token`, `bad_messages`, `invalid_text`, `unknown_adapter`,
    `bad_request`, `unsupported`, `queue_full`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str]]:
        return type(self), (self.code, str(self))  # pickles across Ray and process pools
