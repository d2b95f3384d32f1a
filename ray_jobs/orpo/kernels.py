"""The passes over memory between matrix products, each as one small pure function.

They run as they are, or fused by torch.compile (`use_compiled`) into one vectorised loop each, where a
compiler works. Arithmetic is in fp32 whatever the tensors' type.

Legend: T tokens, D hidden channels, F feed-forward channels, G groups of query heads that share a key
head, R query rows of a group (positions x heads in the group), S keys seen, C channels of a head, N
predicted tokens, V vocabulary.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight, and 1 / rms(x)."""
    x32_TD = x_TD.float()
    rstd_T1 = torch.rsqrt(x32_TD.square().mean(-1, keepdim=True) + eps)
    return (x32_TD * rstd_T1 * weight_D.float()).to(x_TD.dtype), rstd_T1


def rms_norm_again(x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor) -> Tensor:
    """The first result of `rms_norm`, from the second."""
    return (x_TD.float() * rstd_T1 * weight_D.float()).to(x_TD.dtype)


def rms_norm_backward(
    grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor, residual_TD: Tensor
) -> Tensor:
    """Gradient in x, plus `residual_TD`: what reached x around the norm."""
    unit_TD = x_TD.float() * rstd_T1
    scaled_TD = grad_TD.float() * weight_D.float()
    along_T1 = (scaled_TD * unit_TD).mean(-1, keepdim=True)
    return (residual_TD.float() + rstd_T1 * (scaled_TD - unit_TD * along_T1)).to(x_TD.dtype)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    return (torch.nn.functional.silu(gate_TF.float()) * up_TF.float()).to(gate_TF.dtype)


def swiglu_backward(grad_TF: Tensor, gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in gate and up, and the product itself again."""
    gate, up, grad = gate_TF.float(), up_TF.float(), grad_TF.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad * up * sigmoid * (1 + gate - silu)
    return grad_gate.to(gate_TF.dtype), (grad * silu).to(gate_TF.dtype), (silu * up).to(gate_TF.dtype)


def rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021), halves paired; [T, H, C] to [H, T, C]."""
    x = x_THC.float().transpose(0, 1)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos_TC.float() + turned * sin_TC.float()).to(x_THC.dtype)


def rotate_back(grad_HTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Gradient of `rotate`: [H, T, C] to [T, H, C]."""
    grad = grad_HTC.float().transpose(0, 1)
    half = grad.shape[-1] // 2
    sin = grad * sin_TC.float()[:, None]
    turned = torch.cat((sin[..., half:], -sin[..., :half]), dim=-1)
    return (grad * cos_TC.float()[:, None] + turned).to(grad_HTC.dtype)


def causal_softmax(scores_GRS: Tensor, first_seen: int, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax over the keys that a row sees, and its log-sum-exp.

    Row r is a query of position r // heads and sees the first `first_seen` + r // heads keys.
    """
    num_rows, num_keys = scores_GRS.shape[1:]
    seen_R1 = first_seen + torch.arange(num_rows, device=scores_GRS.device)[:, None] // heads
    hidden_RS = torch.arange(num_keys, device=scores_GRS.device)[None, :] >= seen_R1
    scaled = (scores_GRS.float() * scale).masked_fill(hidden_RS, float("-inf"))
    largest = scaled.amax(-1, keepdim=True)
    lse_GR1 = largest + (scaled - largest).exp().sum(-1, keepdim=True).log()
    return (scaled - lse_GR1).exp().to(scores_GRS.dtype), lse_GR1


def causal_softmax_backward(
    scores_GRS: Tensor, grad_GRS: Tensor, lse_GR1: Tensor, delta_GR1: Tensor, first_seen: int, heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The softmax again, and the gradient in the scores; delta is the sum of grad x softmax."""
    num_rows, num_keys = scores_GRS.shape[1:]
    seen_R1 = first_seen + torch.arange(num_rows, device=scores_GRS.device)[:, None] // heads
    hidden_RS = torch.arange(num_keys, device=scores_GRS.device)[None, :] >= seen_R1
    probs = (scores_GRS.float() * scale - lse_GR1).masked_fill(hidden_RS, float("-inf")).exp()
    grad = probs * (grad_GRS.float() - delta_GR1) * scale
    return probs.to(scores_GRS.dtype), grad.to(scores_GRS.dtype)


def log_softmax_at(logits_NV: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the labels in fp32, and all log-sum-exps."""
    logits = logits_NV.float()
    largest_N = logits.amax(-1)
    lse_N = largest_N + (logits - largest_N[:, None]).exp().sum(-1).log()
    return logits_NV.gather(1, label_N[:, None]).squeeze(1).float() - lse_N, lse_N


def softmax_from_lse(logits_NV: Tensor, lse_N: Tensor) -> Tensor:
    return (logits_NV.float() - lse_N[:, None]).exp().to(logits_NV.dtype)


_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}


def run(kernel: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel, compiled if `use_compiled` was asked for."""
    return _COMPILED.get(kernel, kernel)(*args)


def use_compiled(wanted: bool) -> bool:
    """Switch compiled kernels on or off for this process; returns whether they are on.

    Stays off, with a logged reason, where torch.compile has no working compiler.
    """
    _COMPILED.clear()
    if not wanted:
        return False
    reason = _why_not_compiled()
    if reason:
        logger.warning("kernels run uncompiled: %s", reason)
        return False
    for kernel in (
        rms_norm, rms_norm_again, rms_norm_backward, swiglu, swiglu_backward, rotate, rotate_back,
        causal_softmax, causal_softmax_backward, log_softmax_at, softmax_from_lse,
    ):  # fmt: skip
        _COMPILED[kernel] = torch.compile(kernel, dynamic=True)
    return True


def _why_not_compiled() -> str | None:
    try:
        torch.compile(swiglu, dynamic=True)(torch.ones(3, 32), torch.ones(3, 32))
    except Exception as error:  # inductor raises whatever the compiler or the loader does
        return str(error).strip().splitlines()[0][:200]
    return None
