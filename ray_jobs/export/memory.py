"""Has this machine the memory to write a model? Asked before the search, because export comes after it."""

import math
from collections.abc import Mapping

from ray_jobs.errors import ConfigError
from ray_jobs.export.adapter import base_shapes
from ray_jobs.export.base import BaseModel
from serving.engine.topology import memory_bytes

BYTES_PER_WEIGHT = 5.0
"""A weight in float32, and what rounding it takes: 4.6 between models of 135M and 396M weights, measured as
memory that no file backs. The unquantised file is pages that the kernel may drop."""
BESIDES = 1.5 * 2**30
"""Bytes of the libraries (0.4 GB of those models), and of larger tensors in work."""


def check_export_memory(base: BaseModel) -> None:
    """Raises ConfigError, with the sum, where the models of this base cannot be written on this machine."""
    total, limit = memory_bytes()
    there = min((amount for amount in (total, limit) if amount is not None), default=None)
    needed = export_bytes(base_shapes(base.hf_dir))
    if there is not None and needed > there:
        raise ConfigError(
            f"export: merging {base.name} takes some {needed / 2**30:.1f} GiB of memory where the command "
            f"runs (on a cluster: the head), which has {there / 2**30:.1f} GiB; run it where there is more"
        )


def export_bytes(shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Most that an export holds at a time. `shapes`: of all weights."""
    return BYTES_PER_WEIGHT * sum(math.prod(shape) for shape in shapes.values()) + BESIDES
