"""The key/value cache of OpenVINO's pipeline: its size, and how much of it requests may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from serving.engine.llamacpp.memory import free_memory_bytes
from serving.engine.settings import EngineSettings
from serving.engine.types import Request

_GB = 1 << 30
_MAX_CACHE_GB = 8
_BLOCK_TOKENS = 32
"""A sequence takes the cache in blocks of so many tokens."""
_NUMBER_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
"""Of a key's or value's numbers; by default, and as q8_0, bytes with a scale and an offset for each head."""


class Room:
    """Asked for more than it holds, the pipeline (2026.4) loses requests, or stands still: so it never is."""

    def __init__(self, metadata: Callable[[str], str | None], settings: EngineSettings) -> None:
        """`metadata`: of the GGUF file."""
        bytes_per_token = token_bytes(metadata, settings.kv_type)
        self._context_tokens = settings.context_tokens
        self.cache_gb = cache_gb(settings, bytes_per_token)
        self.num_tokens = self.cache_gb * _GB // bytes_per_token if self.cache_gb else None
        """None: the cache grows on demand."""

    def needed(self, request: Request) -> int:
        """Tokens of the cache that it may take."""
        return _of_blocks(min(len(request.prompt) + request.sampling.max_tokens, self._context_tokens))

    def is_too_small(self, request: Request) -> bool:
        return self.num_tokens is not None and self.needed(request) > self.num_tokens

    def fits(self, request: Request, running: Iterable[Request]) -> bool:
        if self.num_tokens is None:
            return True
        return sum(map(self.needed, running)) + self.needed(request) <= self.num_tokens


def cache_gb(settings: EngineSettings, bytes_per_token: int) -> int:
    """Whole GB for keys and values: one that grows on demand (0) is copied as it grows, 5 % of all time.

    At most a quarter of the free memory. 0 where not even 1 GB is left, or the free memory is unknown.
    """
    assert settings.slots != "auto"
    free = free_memory_bytes()
    if free is None:
        return 0
    wanted = -(-settings.slots * _of_blocks(settings.context_tokens) * bytes_per_token // _GB)
    return min(wanted, _MAX_CACHE_GB, free // 4 // _GB)


def token_bytes(metadata: Callable[[str], str | None], kv_type: str) -> int:
    """Bytes of keys and values that one token takes, over all layers."""
    architecture = metadata("general.architecture")

    def size(name: str, default: int) -> int:
        found = metadata(f"{architecture}.{name}")
        return int(found) if found else default

    num_heads = size("attention.head_count", 1)
    head = size("embedding_length", 1) // num_heads
    lengths = size("attention.key_length", head), size("attention.value_length", head)
    number_bytes = _NUMBER_BYTES.get(kv_type)
    of_head = sum(length * number_bytes if number_bytes else length + 8 for length in lengths)
    return size("block_count", 1) * size("attention.head_count_kv", num_heads) * of_head


def _of_blocks(num_tokens: int) -> int:
    return -(-num_tokens // _BLOCK_TOKENS) * _BLOCK_TOKENS
