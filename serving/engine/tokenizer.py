"""A model's vocabulary and chat template without its weights: for drivers, gateways and checks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from serving.engine.bounds import check_fits
from serving.engine.chat import ChatTemplate
from serving.engine.errors import ModelMismatch, RequestError

if TYPE_CHECKING:
    from serving.engine.llamacpp.model import LlamaModel


class Tokenizer:
    """Text to token ids and back. Thread-safe; opening reads the file's header and vocabulary only."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model

    @classmethod
    def open(cls, path: str | Path) -> Tokenizer:
        """Raises ModelLoadError if the file is not sound."""
        from serving.engine.gguf_check import check_header
        from serving.engine.llamacpp.model import LlamaModel

        check_header(path, vocab_only=True)
        return cls(LlamaModel.open(str(path), vocab_only=True))

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if "chat" in self.__dict__:
            self.chat.close()
        self._model.close()

    @functools.cached_property
    def chat(self) -> ChatTemplate:
        """The model's own template. Raises ModelMismatch if it has none."""
        source = self._model.metadata("tokenizer.chat_template")
        if not source:
            raise ModelMismatch(f"{self._model.path}: it has no chat template")
        return ChatTemplate(source, self._model)

    def tokenize(
        self, text: str, *, special: bool = False, add_bos: bool = False, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of a text.

        `special`: read control tokens' names as control tokens, for text that no user has written. `add_bos`:
        put BOS in front where the vocabulary asks for it. Raises RequestError: `invalid_text` for lone
        surrogates, `context_length_exceeded` for text that is far over `max_tokens`, in little time.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                "invalid_text", "the text contains a lone surrogate: not valid Unicode"
            ) from error
        if max_tokens is not None:
            check_fits(
                data, max_tokens, lambda part: self._model.tokenize(part, special=special, add_bos=False)
            )
        return self._model.tokenize(data, special=special, add_bos=add_bos)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids. `special`: with control tokens' names. Bytes that are no UTF-8 become U+FFFD."""
        for token in tokens:
            if not 0 <= token < self._model.num_vocab:
                raise RequestError("bad_token", f"token {token} is not in the vocabulary")
        return self._model.detokenize(tokens, special=special)

    def piece(self, token: int) -> bytes:
        """A token's bytes, which may be a part of a character; of a control token its name."""
        return self._model.piece(token) or self._model.detokenize([token], special=True).encode()

    @property
    def end_tokens(self) -> frozenset[int]:
        """The token ids with which the model ends an answer."""
        return self._model.end_tokens

    @property
    def num_vocab(self) -> int:
        return self._model.num_vocab
