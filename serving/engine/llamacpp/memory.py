"""Does the key/value cache fit? Asked before it is allocated, because the kernel says no by killing."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

from serving.engine.cores import lease_holders
from serving.engine.errors import ModelLoadError, ModelMismatch
from serving.engine.llamacpp.context import kv_bytes_per_token
from serving.engine.llamacpp.model import LlamaModel
from serving.engine.settings import EngineSettings
from serving.engine.topology import cgroup_folders, first_of, memory_limit, usable_cores

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_FOR_CACHES = 0.8
"""Of the memory that engines share: the rest is for what they compute with, and for other programs."""


def fitted(model: LlamaModel, settings: EngineSettings, auto: Collection[str]) -> tuple[int, int]:
    """Lanes, and the slots of each, whose caches fit into this engine's share of the free memory.

    As many as the (resolved) settings say, fewer where `auto` has `lanes` or `slots`, which the caller left
    open; a cache on a GPU is not the machine's. At least one of each.
    """
    lanes, slots = settings.lanes, settings.slots
    assert lanes != "auto"
    assert slots != "auto"
    share = None if settings.gpu_layers else memory_share(settings.cores)
    if share is None or "slots" not in auto:
        return lanes, slots
    a_slot = settings.context_tokens * kv_bytes_per_token(model, settings.kv_type)
    total = max(1, int(share // a_slot)) if a_slot else lanes * slots
    fitting_lanes = min(lanes, total) if "lanes" in auto else lanes
    fitting_slots = max(1, min(slots, total // fitting_lanes))
    if fitting_slots < slots:
        logger.warning(
            "%s: %d slots in place of %d: one takes %d MiB (context_tokens %d, %s), and %d MiB are free for "
            "this engine",
            *(model.path, fitting_lanes * fitting_slots, lanes * slots, a_slot // _MIB),
            *(settings.context_tokens, settings.kv_type, share // _MIB),
        )
    return fitting_lanes, fitting_slots


def memory_share(cores: int) -> int | None:
    """Bytes for the cache of an engine of so many cores: engines share the memory as they share the cores.

    It is the same for each of several that start beside one another: what those that own cores already hold
    counts as not yet given away. None where the free memory is not known.
    """
    free = free_memory_bytes()
    if free is None:
        return None
    there = len(usable_cores() or ()) or os.cpu_count() or 1
    held = sum(_allocated(pid) for pid in lease_holders() - {os.getpid()})
    return int(_FOR_CACHES * min(free, (free + held) * min(1.0, cores / there)))


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


def _allocated(pid: int) -> int:
    """Bytes of a process that no file backs; 0 where that is not to be known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields.get("RssAnon", "0").split()[0]) * 1024


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
