"""Does the key/value cache fit? Asked before it is allocated, because the kernel says no by killing."""

from __future__ import annotations

from pathlib import Path

from serving.engine.errors import ModelLoadError, ModelMismatch
from serving.engine.llamacpp.context import kv_bytes_per_token
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.settings import EngineSettings
from serving.engine.topology import cgroup_folders, first_of, memory_limit

_MIB = 1 << 20


def check_memory(model: LlamaModel, settings: EngineSettings, *, num_slots: int) -> None:
    """Raises ModelLoadError with the arithmetic if the cache of all slots exceeds the free memory;
    ModelMismatch if a slot is longer than what the model was trained for."""
    trained = model.size_of("n_ctx_train")
    if settings.context_tokens > trained:
        raise ModelMismatch(
            f"{model.path}: context_tokens is {settings.context_tokens}, but it was trained for {trained}"
        )
    per_token = kv_bytes_per_token(model, settings.kv_type)
    needed = num_slots * settings.context_tokens * per_token
    free = free_memory_bytes()
    if free is not None and needed > free:
        raise ModelLoadError(
            f"{model.path}: the key/value cache does not fit: {num_slots} slots x {settings.context_tokens} "
            f"tokens x {per_token} bytes ({settings.kv_type}) = {needed // _MIB} MiB, but {free // _MIB} MiB "
            "are free; "
            "take fewer slots, a smaller context_tokens, or kv_type q8_0"
        )


def free_memory_bytes() -> int | None:
    """What this process may still allocate: of the machine, and of its control groups. None if unknown."""
    amounts = (_machine_free(), *map(_cgroup_free, cgroup_folders("memory")))
    return min((amount for amount in amounts if amount is not None), default=None)


def _machine_free() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _cgroup_free(folder: Path) -> int | None:
    """Pages of files count as used there, also the model's own, but the kernel gives them up when asked."""
    limit = memory_limit(folder)
    try:
        used = int(first_of(folder, "memory.current", "memory.usage_in_bytes") or "")
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    if limit is None:
        return None
    counts = dict(line.split() for line in lines)
    files = sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, limit - max(0, used - files))
