"""A loaded GGUF model: its weights, vocabulary and metadata. Read-only after opening, so lanes share it."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp

from serving.engine.errors import EngineError, ModelLoadError, ModelMismatch
from serving.engine.llamacpp import amx, library

_MARKER = re.compile(r"<[|\uff5c].*[|\uff5c]>")
_LIKE_A_MARKER = re.compile(r"(?=.*[a-zA-Z])(<.*>|\[.*\])")


class LlamaModel:
    """Weights and vocabulary. Thread-safe: nothing in it changes."""

    def __init__(self, handle: Any, path: str) -> None:
        self.handle = handle
        self.path = path
        self._readers = 0
        self._no_reader = threading.Condition()
        self._vocab = llama_cpp.llama_model_get_vocab(handle)
        self.num_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.num_vocab

    @classmethod
    def open(cls, path: str, *, gpu_layers: int = 0, vocab_only: bool = False) -> LlamaModel:
        """Map the file. Raises ModelLoadError; ModelMismatch if it holds no text generator."""
        library.start()
        library.take_errors()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.vocab_only = vocab_only
        with amx.kept_off():
            handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not handle:
            raise ModelLoadError(
                f"{path}: llama.cpp cannot load it: {library.take_errors() or 'no reason given'}"
            )
        model = cls(handle, path)
        if not vocab_only and (
            not llama_cpp.llama_model_has_decoder(handle) or llama_cpp.llama_model_has_encoder(handle)
        ):
            model.close()
            raise ModelMismatch(f"{path}: not a decoder-only text model")
        if llama_cpp.llama_model_is_recurrent(handle) or llama_cpp.llama_model_is_hybrid(handle):
            model.close()
            raise ModelMismatch(
                f"{path}: recurrent and hybrid models are not supported: their state cannot be cut"
            )
        return model

    def close(self) -> None:
        """Free it, once no thread reads its vocabulary any more."""
        with self._no_reader:
            handle, self.handle = self.handle, None
            self._no_reader.wait_for(lambda: self._readers == 0)
        if handle is not None:
            llama_cpp.llama_model_free(handle)

    @contextmanager
    def _read(self) -> Iterator[None]:
        """The model stays for as long as the block. Raises EngineError if it was closed."""
        with self._no_reader:
            if self.handle is None:
                raise EngineError(f"{self.path}: the engine is closed")
            self._readers += 1
        try:
            yield
        finally:
            with self._no_reader:
                self._readers -= 1
                self._no_reader.notify_all()

    def metadata(self, key: str) -> str | None:
        """A metadata value as text, or None."""
        with self._read():
            size = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
            if size < 0:
                return None
            buffer = ctypes.create_string_buffer(size + 1)
            llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def size_of(self, what: str) -> int:
        """A dimension: `n_layer`, `n_embd`, `n_head`, `n_head_kv`, `n_ctx_train`, `n_params` or `size`
        (bytes)."""
        return int(getattr(llama_cpp, f"llama_model_{what}")(self.handle))

    @functools.cached_property
    def has_window(self) -> bool:
        """Whether layers attend to the last tokens only: their caches then take cells up again."""
        return int(llama_cpp.llama_model_n_swa(self.handle)) > 0

    # Vocabulary.

    def tokenize(self, data: bytes, *, special: bool, add_bos: bool) -> list[int]:
        """Token ids of UTF-8 text; `special`: read control tokens' names as control tokens.

        llama.cpp knows no way to read names of user-defined tokens as text: they are cut for that.
        """
        if special or self._user_markers is None or not self._user_markers.search(data):
            return self._tokenize(data, special=special, add_bos=add_bos)
        cuts = [0, *(match.start() + 1 for match in self._user_markers.finditer(data)), len(data)]
        tokens: list[int] = []
        for start, end in itertools.pairwise(cuts):
            tokens += self._tokenize(data[start:end], special=False, add_bos=add_bos and start == 0)
        return tokens

    def _tokenize(self, data: bytes, *, special: bool, add_bos: bool) -> list[int]:
        capacity = len(data) + 2
        buffer = (ctypes.c_int32 * capacity)()
        with self._read():
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, add_bos, special)
            if count < 0:
                buffer = (ctypes.c_int32 * -count)()
                count = llama_cpp.llama_tokenize(
                    self._vocab, data, len(data), buffer, -count, add_bos, special
                )
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for in an answer; empty for control tokens."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token, special=False)
        return piece

    def detokenize(self, tokens: Sequence[int], *, special: bool) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        read = functools.partial(self._read_piece, special=True) if special else self.piece
        return b"".join(read(token) for token in tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        return token in self.end_tokens

    @functools.cached_property
    def end_tokens(self) -> frozenset[int]:
        """The tokens with which the model ends an answer."""
        is_eog = llama_cpp.llama_vocab_is_eog
        with self._read():
            return frozenset(token for token in range(self.num_vocab) if is_eog(self._vocab, token))

    @functools.cached_property
    def control_tokens(self) -> dict[str, tuple[int, int]]:
        """Control tokens' names -> (id, attributes); with them user-defined ones that the chat template
        writes, as some vocabularies have their markers of turns and tools."""
        mask = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        user_defined = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        get = llama_cpp.llama_vocab_get_attr
        template = self.metadata("tokenizer.chat_template") or ""
        found: dict[str, tuple[int, int]] = {}
        with self._read():
            for token in range(self.num_vocab):
                attributes = get(self._vocab, token)
                if not attributes & (mask | user_defined) or not (name := self.token_text(token)):
                    continue
                if attributes & mask or _is_marker(name, template):
                    found[name] = (token, attributes)
        return found

    @functools.cached_property
    def _user_markers(self) -> re.Pattern[bytes] | None:
        """Finds where names of user-defined tokens begin that are taken for control tokens."""
        user_defined = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        names = [name for name, (_, attributes) in self.control_tokens.items() if attributes & user_defined]
        either = b"|".join(re.escape(name.encode()) for name in names)
        return re.compile(b"(?=" + either + b")") if names else None

    def token_text(self, token: int) -> str:
        if token < 0:
            return ""
        with self._read():
            return (llama_cpp.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")

    def named_tokens(self) -> dict[str, str]:
        """The variables bos_token, eos_token, … that chat templates may use."""
        names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "sep_token": "sep"}
        with self._read():
            return {
                name: text
                for name, short in names.items()
                if (text := self.token_text(getattr(llama_cpp, f"llama_vocab_{short}")(self._vocab)))
            }

    @property
    def vocab(self) -> Any:
        return self._vocab

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        with self._read():
            size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 64, 0, special)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -size, 0, special)
        return buffer.raw[:size]


def _is_marker(name: str, template: str) -> bool:
    """Whether a user-defined token means something to the model that users are not to say.

    White space, digits and tags of HTML do not; nor does what the template looks for in messages, such as the
    end of earlier reasoning, which it would no longer find there.
    """
    if _MARKER.fullmatch(name):
        return True
    if name not in template or not _LIKE_A_MARKER.fullmatch(name):
        return False
    quoted = f"[\"']{re.escape(name)}[\"']"
    return not re.search(rf"split\(\s*{quoted}|{quoted}\s+in\s", template)
