"""One lane of the llama.cpp backend: a context whose sequences are the slots."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

from serving.engine.backend import Chunk, Sampler
from serving.engine.errors import EngineError, ModelLoadError, ModelMismatch
from serving.engine.llamacpp import library
from serving.engine.llamacpp.batch import Batch
from serving.engine.llamacpp.half_precision import sums_in_half_precision
from serving.engine.llamacpp.kernels.origins import Origins
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.llamacpp.sampling import LlamaSampler, logits_of, logprob_of
from serving.engine.settings import EngineSettings
from serving.engine.types import TokenLogprob

_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # ggml_type
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "bf16": 2.0}
_ABORTED = 2
_TILE_ROWS = 64
"""From so many rows of a sequence on llama.cpp's fused attention works in tiles (`GGML_FA_TILE_Q`), which
round otherwise than row by row. Even, as an odd number of tokens is to be the most beside others."""
_SHORT_CONTEXT_TOKENS = 1024
"""Up to here fused attention in bf16 is worth it; measured on Intel with prompts of 64 to 1,500 tokens."""
_LEAST_CONTEXT_TOKENS = 256
"""llama.cpp rounds up to a multiple of this in any case; `_keeps_apart` needs half of it."""
_MAX_TARGETS = 32
"""Tokens of prompts that a pass scores at most: each takes room for a whole vocabulary."""
_MAX_BRIDGE = 2
"""Idle slots between two busy ones that are worth a row of padding; see `_with_bridges`."""

logger = logging.getLogger(__name__)


class LlamaBackend:
    """Implements `Backend`. To be opened and used on the thread whose cores it shall use."""

    def __init__(
        self,
        model: LlamaModel,
        settings: EngineSettings,
        *,
        num_slots: int,
        threads: tuple[int, int],
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        """`threads`: for prompts, for answers. `adapters`: from `load_adapters`."""
        self.num_slots = num_slots
        self.max_targets = _MAX_TARGETS
        self.context_tokens = settings.context_tokens
        self._abort_flag = ctypes.create_string_buffer(2)
        self._context = _open_context(model, settings, num_slots, threads, self._abort_flag)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._adapters = adapters or {}
        self._adapter: str | None = None
        self._lengths = [0] * num_slots
        self._rows: dict[int, int] = {}
        self._targets: dict[int, tuple[int, Sequence[int]]] = {}
        """Of each slot that is scored: the row of its chunk's first token, and what followed."""
        self._num_vocab = model.num_vocab
        self._origins = Origins(num_slots, 0 if model.has_window else settings.context_tokens)
        self._batch = Batch(_pass_tokens(settings) + num_slots)
        self._apart = bool(settings.deterministic) and resolve_flash_attention(settings)
        self._apart = self._apart and self._keeps_apart()
        self.tile_tokens = _TILE_ROWS if self._apart else None
        if settings.deterministic and not self._apart:
            logger.warning(
                "%s: what is computed together depends on each other here%s",
                model.path,
                ": one sequence a pass" if settings.deterministic is True else ", and so do answers a little",
            )

    def close(self) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None

    def decode(self, chunks: Sequence[Chunk], adapter: str | None) -> bool:
        self._abort_flag[0] = b"\0"
        self._use_adapter(adapter)
        padded = self._with_company(chunks) if self._apart else self._with_bridges(chunks)
        self._rows, self._targets = self._batch.fill(padded, first_too=self._apart and not chunks[0].tiled)
        with self._origins.told([chunk.slot for chunk in padded]):
            status = llama_cpp.llama_decode(self._context, self._batch.native)
        if status != 0:
            self._settle(padded, ())
        if status == _ABORTED:
            return False
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status}: {library.take_errors()}")
        self._settle(padded, chunks)
        return True

    def sample(self, slot: int, sampler: Sampler) -> tuple[int, TokenLogprob | None]:
        assert isinstance(sampler, LlamaSampler)
        return sampler.sample(self._context, self._rows[slot])

    def score(self, slot: int, num_top: int) -> list[TokenLogprob]:
        first, targets = self._targets[slot]
        return [
            logprob_of(logits_of(self._context, first + index, self._num_vocab), token, num_top)
            for index, token in enumerate(targets)
        ]

    def truncate(self, slot: int, num_tokens: int) -> None:
        if self._lengths[slot] > num_tokens:
            llama_cpp.llama_memory_seq_rm(self._memory, slot, num_tokens, -1)
            self._lengths[slot] = num_tokens
            self._origins.truncated(slot, num_tokens)

    def copy(self, source: int, target: int) -> None:
        # Each slot has a cache of its own (a shared one makes every pass dearer), so this copies all of it,
        # at the start of the next pass. The copied cells replace the target's.
        llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._lengths[target] = self._lengths[source]
        self._origins.copied(source, target, self._lengths[source])

    def abort(self) -> None:
        self._abort_flag[0] = b"\1"

    def cells(self, slot: int) -> int:
        """Positions that the native cache holds for a slot; for tests of the bookkeeping."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def _with_bridges(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Fill narrow gaps between busy slots with a throw-away row.

        llama.cpp computes only neighbouring sequences together (`llama_batch_allocr::split_equal`,
        sequential); a gap makes it read all weights once more, which costs more than a row or two.
        """
        bridged: list[Chunk] = []
        for chunk in chunks:
            if bridged and 1 < chunk.slot - bridged[-1].slot <= _MAX_BRIDGE + 1:
                gap = range(bridged[-1].slot + 1, chunk.slot)
                if all(self._lengths[slot] < chunk.start for slot in gap):
                    bridged += [self._padding(slot) for slot in gap]
            bridged.append(chunk)
        return bridged

    def _with_company(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Padding that makes all passes alike to llama.cpp.

        Where its kernels differ with the number of rows, they do between 63 and 64 rows of a sequence (tiles
        of fused attention) and between one row and two (matrix products, attention split over threads).
        Beyond these each row is computed by itself. llama.cpp computes one token of each of neighbouring
        sequences, then what is left of the longer ones: of odd numbers of tokens that is never a single one.
        That each chunk's first token has an output keeps these from being a single one too.
        """
        if chunks[0].tiled:
            return list(chunks)
        padded = {chunk.slot: chunk for chunk in self._with_bridges(chunks)}
        for slot, chunk in tuple(padded.items()):
            if len(chunk.tokens) == 1 and slot - 1 not in padded and slot + 1 not in padded:
                beside = slot + 1 if slot + 1 < self.num_slots else slot - 1
                if beside >= 0:
                    padded[beside] = self._padding(beside)
        return [padded[slot] for slot in sorted(padded)]

    def _padding(self, slot: int) -> Chunk:
        return Chunk(slot, self._lengths[slot], (0,), False, False)

    def _settle(self, padded: Sequence[Chunk], chunks: Sequence[Chunk]) -> None:
        """After a pass: padding leaves the cache, and the lengths are what the pass has made of them."""
        kept = {chunk.slot: chunk.start + len(chunk.tokens) for chunk in chunks}
        for chunk in padded:
            self._lengths[chunk.slot] = chunk.start + len(chunk.tokens)
        for chunk in padded:
            self.truncate(chunk.slot, kept.get(chunk.slot, chunk.start))

    def _keeps_apart(self) -> bool:
        """Whether this build's kernels do on this processor what `_with_company` counts on, by trying: tiles
        at once and in two parts, rows at once and one by one in a crowd."""
        half, end = _TILE_ROWS, 2 * _TILE_ROWS
        tokens = [(7 * index + 3) % self._num_vocab for index in range(end + 6)]
        at_once = self._logits_of(Chunk(0, 0, tokens[:end], True, True))
        self.decode([Chunk(0, end, tokens[end:-1], False, False)], None)
        alone = self._logits_of(Chunk(0, end + 5, tokens[-1:], True, False))
        self.truncate(0, 0)
        self.decode([Chunk(0, 0, tokens[:half], False, True)], None)
        in_parts = self._logits_of(Chunk(0, half, tokens[half:end], True, True))
        for index, token in enumerate(tokens[end:]):
            crowd = [Chunk(slot, index, (token,), True, False) for slot in range(1, self.num_slots)]
            crowded = self._logits_of(Chunk(0, end + index, (token,), True, False), *crowd)
        for slot in range(self.num_slots):
            self.truncate(slot, 0)
        return np.array_equal(at_once, in_parts) and np.array_equal(alone, crowded)

    def _logits_of(self, *chunks: Chunk) -> Any:
        """The first chunk's next-token logits after the pass, shape (vocabulary,)."""
        self.decode(chunks, None)
        return logits_of(self._context, self._rows[chunks[0].slot], self._num_vocab).copy()

    def _use_adapter(self, name: str | None) -> None:
        if name == self._adapter:
            return
        chosen = [] if name is None else [self._adapters[name]]
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(*chosen)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self._context, handles, len(chosen), scales) != 0:
            raise EngineError(f"adapter {name!r} cannot be used: {library.take_errors()}")
        self._adapter = name


def resolve_kv_type(kv_type: str) -> str:
    """What `auto` means here: f16; bf16 where the build adds up attention's f16 values slowly."""
    if kv_type != "auto":
        return kv_type
    return "bf16" if sums_in_half_precision() else "f16"


def resolve_flash_attention(settings: EngineSettings) -> bool:
    """What `auto` means here. Plain attention computes a lone row otherwise than several, so that it is no
    choice where answers are to depend on nothing else."""
    if settings.flash_attention != "auto":
        return settings.flash_attention
    if settings.deterministic or settings.gpu_layers != 0:
        return True
    kv_type = resolve_kv_type(settings.kv_type)
    if kv_type == "bf16":
        return settings.context_tokens <= _SHORT_CONTEXT_TOKENS
    return not (kv_type == "f16" and sums_in_half_precision())


def kv_bytes_per_token(model: LlamaModel, kv_type: str) -> int:
    """Bytes of keys and values that one token takes, over all layers."""
    head_size = model.size_of("n_embd") // model.size_of("n_head")
    explicit = model.metadata(f"{model.metadata('general.architecture')}.attention.key_length")
    head_size = int(explicit) if explicit else head_size
    return int(
        2
        * model.size_of("n_layer")
        * model.size_of("n_head_kv")
        * head_size
        * _KV_BYTES[resolve_kv_type(kv_type)]
    )


def _pass_tokens(settings: EngineSettings) -> int:
    """The most that a scheduler puts into one; in a deterministic pass a tile's rest may be on top."""
    if not settings.deterministic:
        return settings.batch_tokens
    return max(settings.batch_tokens, _TILE_ROWS) + _TILE_ROWS


def _open_context(
    model: LlamaModel,
    settings: EngineSettings,
    num_slots: int,
    threads: tuple[int, int],
    abort_flag: ctypes.Array[ctypes.c_char],
) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = num_slots * max(settings.context_tokens, _LEAST_CONTEXT_TOKENS)
    params.n_seq_max = num_slots
    params.n_batch = _pass_tokens(settings) + num_slots
    params.n_ubatch = _pass_tokens(settings)
    params.n_outputs_max = num_slots + _MAX_TARGETS
    params.n_threads_batch, params.n_threads = threads
    kv_type = "f16" if settings.deterministic and settings.kv_type == "auto" else settings.kv_type
    params.type_k = params.type_v = _KV_TYPES[resolve_kv_type(kv_type)]
    params.flash_attn_type = int(resolve_flash_attention(settings))
    params.kv_unified = False
    params.no_perf = True
    params.abort_callback = _string_length_as_abort_callback()
    params.abort_callback_data = ctypes.addressof(abort_flag)
    library.take_errors()
    context = llama_cpp.llama_init_from_model(model.handle, params)
    if not context:
        raise ModelLoadError(f"{model.path}: no context of {params.n_ctx} tokens: {library.take_errors()}")
    return context


def _string_length_as_abort_callback() -> Any:
    """An abort callback that needs no Python: C's strlen of a flag buffer, non-zero once a byte is set.

    ggml asks before every operation; a Python callback would take the interpreter lock a thousand times a
    pass.
    """
    name = "msvcrt" if sys.platform == "win32" else None
    return ctypes.cast(ctypes.CDLL(name).strlen, llama_cpp.ggml_abort_callback)


def load_adapters(model: LlamaModel, paths: Mapping[str, str]) -> dict[str, Any]:
    """LoRA adapters by name; they end with the model. Raises ModelMismatch for one that does not fit."""
    adapters = {}
    for name, path in paths.items():
        library.take_errors()
        adapters[name] = llama_cpp.llama_adapter_lora_init(model.handle, os.fsencode(path))
        if not adapters[name]:
            raise ModelMismatch(f"adapter {name!r} ({path}): not for {model.path}: {library.take_errors()}")
    return adapters
