"""Proof that template and base are one model: what training left alone is in both the same."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import TensorLayout
from ray_jobs.export.gguf_writer import plan_tensors

MAX_RELATIVE_ERROR = {
    "F32": 1e-6, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.02, "Q6_K": 0.04, "Q5": 0.08, "Q4": 0.16, "IQ4": 0.16,
    "Q3": 0.30, "IQ3": 0.35, "Q2": 0.55, "IQ2": 0.6,
}  # fmt: skip
"""Format, or the beginning of its name -> largest root-mean-square error of a tensor, relative to its size.
About twice what the format costs on normally distributed weights. Two unrelated tensors differ by 1.4."""
OTHER_FORMATS = 0.8


@dataclass(frozen=True)
class Untouched:
    """What was compared; no tensors where the template, written from the base's config, has no weights."""

    tensors: int
    max_relative_error: float


def check_untouched(
    template: GgufFile, state: Mapping[str, Any], layout: TensorLayout, touched: Collection[str]
) -> Untouched:
    """Compares every weight outside `touched` (HF names) with the template's, dequantised.

    Norms are stored unquantised, so that they tell a base from its own fine-tunes. Raises
    ModelMismatch, naming the tensor, when one differs by more than its number format explains.
    """
    planned = plan_tensors(template, {name: tuple(values.shape) for name, values in state.items()}, layout)
    worst, count = 0.0, 0
    for item in planned:
        if item.hf_name is None or item.hf_name in touched or item.name not in template.tensors:
            continue
        values = layout.to_gguf(item.hf_name, np.asarray(state[item.hf_name]))
        error = _relative_error(template, item.name, values)
        limit = _limit(template, item.name)
        if not error <= limit:
            raise ModelMismatch(
                f"{template.path}: is not the base's GGUF: {item.name} differs by {error:.2g} of its size "
                f"(its format explains {limit:g})"
            )
        worst, count = max(worst, error), count + 1
    return Untouched(count, worst)


def _relative_error(template: GgufFile, name: str, values: Any) -> float:
    error = size = 0.0
    for rows, expected in template.chunks(name):
        difference = values[rows] - expected
        error += float(np.vdot(difference, difference))
        size += float(np.vdot(expected, expected))
    return float(np.sqrt(error / size)) if size else float(error > 0)


def _limit(template: GgufFile, name: str) -> float:
    from gguf.constants import GGMLQuantizationType

    kind = GGMLQuantizationType(template.tensors[name].type).name
    matching = [limit for start, limit in MAX_RELATIVE_ERROR.items() if kind.startswith(start)]
    return matching[0] if matching else OTHER_FORMATS
