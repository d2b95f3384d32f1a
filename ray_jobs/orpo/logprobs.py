"""Log-probabilities of tokens from hidden states, without ever holding logits for all of them.

Legend: N predicted tokens, D hidden channels, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from ray_jobs.orpo import kernels

CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""Size of the logits that exist at one time, by device; on CPU about what its last cache holds."""


def token_logps(hidden_ND: Tensor, weight_VD: Tensor, label_N: Tensor) -> Tensor:
    """log softmax(hidden @ weight.T)[label] per token, in fp32, differentiable in both inputs."""
    logps_N: Tensor = _TokenLogps.apply(hidden_ND, weight_VD, label_N)
    return logps_N


class _TokenLogps(torch.autograd.Function):
    """A token's log-probability has the gradient weight[label] - softmax @ weight in its hidden state:
    what is kept for the backward pass is that row, of size D instead of V."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, label_N: Tensor) -> Tensor:
        weight_VD = weight_VD.to(hidden_ND.dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        logps_N = torch.empty(len(label_N), dtype=torch.float32, device=hidden_ND.device)
        slope_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        chunks = _chunks(hidden_ND, weight_VD)
        # one buffer for all chunks: memory that is new costs as much as the product that fills it
        buffer_NV = hidden_ND.new_empty((chunks[0].stop, len(weight_VD)))
        for rows in chunks:
            logits_NV = torch.mm(hidden_ND[rows], weight_VD.t(), out=buffer_NV[: rows.stop - rows.start])
            if slope_ND is None:
                logps_N[rows] = kernels.run(kernels.log_softmax_at, logits_NV, label_N[rows])
            else:
                logps_N[rows], sum_N1 = kernels.run(kernels.softmax_in_place, logits_NV, label_N[rows])
                slope_ND[rows] = weight_VD[label_N[rows]] - (logits_NV @ weight_VD).div_(sum_N1)
        ctx.save_for_backward(slope_ND, *((hidden_ND, weight_VD, label_N) if needs_weight else ()))
        return logps_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        slope_ND, *inputs = ctx.saved_tensors
        grad_hidden = slope_ND * grad_N[:, None].to(slope_ND.dtype) if slope_ND is not None else None
        grad_weight = None
        if inputs:
            hidden_ND, weight_VD, label_N = inputs
            grad_weight = _weight_gradient(hidden_ND, weight_VD, label_N, grad_N)
        return grad_hidden, grad_weight, None


def _weight_gradient(hidden_ND: Tensor, weight_VD: Tensor, label_N: Tensor, grad_N: Tensor) -> Tensor:
    grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
    for rows in _chunks(hidden_ND, weight_VD):
        probs_NV = (hidden_ND[rows] @ weight_VD.t()).float().softmax(1)
        probs_NV[torch.arange(len(probs_NV), device=probs_NV.device), label_N[rows]] -= 1
        probs_NV *= -grad_N[rows, None]
        grad_VD += (probs_NV.to(hidden_ND.dtype).t() @ hidden_ND[rows]).float()
    return grad_VD


def _chunks(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    num_rows = len(hidden_ND)
    bytes_at_once = CHUNK_BYTES.get(hidden_ND.device.type, CHUNK_BYTES["cuda"])
    size = max(1, bytes_at_once // (len(weight_VD) * hidden_ND.element_size()))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
