"""What workers of a group find."""

import os
import sys
from pathlib import Path
from typing import Any


def write(job: dict[str, Any], name: str, text: str) -> None:
    Path(job["folder"], name).write_text(text)


def alone(job: dict[str, Any]) -> None:
    write(job, "torch", str("torch" in sys.modules))
    import torch.distributed

    write(job, "grouped", str(torch.distributed.is_initialized()))


def one_of_two(job: dict[str, Any]) -> None:
    import torch

    rank = torch.tensor([torch.distributed.get_rank() + 1.0])
    torch.distributed.all_reduce(rank)
    write(job, f"sum-{torch.distributed.get_rank()}", str(rank.item()))
    write(job, f"gpus-{torch.distributed.get_rank()}", repr(os.environ.get("CUDA_VISIBLE_DEVICES")))
