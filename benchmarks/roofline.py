"""What a processor could do at best: the roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009).

A forward pass takes at least the time of its multiplications at the rate of a large matrix product (measured
in bfloat16 where the processor has it, else in single precision), and at least that of reading its weights
and its cache at the rate of a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Work:
    """Tokens that were computed, and how many answers were written in one pass."""

    prompt_tokens: float
    answer_tokens: float
    batch: int


@dataclass(frozen=True)
class Roofline:
    """A model's size and a processor's measured limits."""

    layer_weights: float
    """Weights of all layers: every token multiplies with them."""
    output_weights: float
    """Of the matrix that gives the logits: only tokens that are sampled multiply with it."""
    file_bytes: float
    operations_per_s: float
    bytes_per_s: float

    def seconds(self, work: Work) -> float:
        """The least that the work can take. Attention and the cache are left out: a few percent here."""
        tokens = work.prompt_tokens + work.answer_tokens
        operations = 2 * (tokens * self.layer_weights + work.answer_tokens * self.output_weights)
        read = self.file_bytes * work.answer_tokens / work.batch
        return max(operations / self.operations_per_s, read / self.bytes_per_s)


def roofline(model: Path, cores: int) -> Roofline:
    """Measured now, on all cores."""
    import torch
    from gguf import GGUFReader

    from ray_jobs.cli.machine import copy_rate
    from ray_jobs.orpo.flops import matrix_rate
    from ray_jobs.orpo.models import uses_bf16
    from ray_jobs.orpo.settings import TrainingSettings

    sizes = {tensor.name: float(tensor.n_elements) for tensor in GGUFReader(model).tensors}
    layers = sum(size for name, size in sizes.items() if name.startswith("blk."))
    output = sizes.get("output.weight", sizes["token_embd.weight"])
    torch.set_num_threads(cores)
    device = torch.device("cpu")
    dtype = torch.bfloat16 if uses_bf16(TrainingSettings(), device) else torch.float32
    return Roofline(
        layer_weights=layers,
        output_weights=output,
        file_bytes=float(model.stat().st_size),
        operations_per_s=matrix_rate(device, dtype),
        bytes_per_s=copy_rate(cores),
    )
