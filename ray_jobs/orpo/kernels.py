"""The passes over memory between matrix products, each as one small pure function.

They run as they are, or in one pass each (`use_compiled`): fused by torch.compile on CPU, where a compiler
works, and written out in Triton for GPUs (kernels_triton.py). Arithmetic is in fp32 whatever the type.

Legend: T tokens, D hidden channels, F feed-forward channels, G groups of query heads that share a key
head, R query rows of a group (positions x heads in the group), S keys seen, C channels of a head, N
predicted tokens, V vocabulary.
"""

import logging
from collections.abc import Callable
from functools import cache
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


def swiglu(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) * up, of gate and up side by side: [T, 2 F] to [T, F]."""
    gate, up = gate_up_TF.float().chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up_TF.dtype)


def swiglu_backward(grad_TF: Tensor, gate_up_TF: Tensor) -> Tensor:
    """Gradients in gate and up, side by side."""
    gate, up = gate_up_TF.float().chunk(2, dim=1)
    grad = grad_TF.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return torch.cat((grad * up * sigmoid * (1 + gate - silu), grad * silu), dim=1).to(gate_up_TF.dtype)


def rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor, groups: int) -> Tensor:
    """Rotary position embedding (Su et al. 2021), halves paired; [T, H, C] to [G, T, H / G, C]."""
    num_tokens, num_heads, width = x_THC.shape
    x = x_THC.float()
    half = width // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    rotated = x * cos_TC.float()[:, None] + turned * sin_TC.float()[:, None]
    grouped = rotated.to(x_THC.dtype).view(num_tokens, groups, num_heads // groups, width)
    return grouped.transpose(0, 1).contiguous()


def rotate_back(grad_GTRC: Tensor, cos_TC: Tensor, sin_TC: Tensor, like: Tensor) -> Tensor:
    """Gradient of `rotate`, in the shape and type of `like`."""
    grad = grad_GTRC.float().transpose(0, 1).reshape(like.shape)
    half = grad.shape[-1] // 2
    sin = grad * sin_TC.float()[:, None]
    turned = torch.cat((sin[..., half:], -sin[..., :half]), dim=-1)
    return (grad * cos_TC.float()[:, None] + turned).to(like.dtype)


def rotate_heads(qkv_TE: Tensor, cos_TC: Tensor, sin_TC: Tensor, num_turned: int) -> Tensor:
    """Rotary position embedding of the first `num_turned` of the heads side by side in a row."""
    x_THC = qkv_TE.unflatten(1, (-1, cos_TC.shape[1]))
    turned_THC = rotate(x_THC[:, :num_turned], cos_TC, sin_TC, 1)[0]
    return torch.cat((turned_THC, x_THC[:, num_turned:]), dim=1).flatten(1)


def rotate_heads_back(
    grad_q_THC: Tensor,
    grad_k_SKC: Tensor,
    grad_v_SKC: Tensor,
    own_T: Tensor,
    again_T: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
) -> Tensor:
    """Gradient of `rotate_heads`, from that in queries, keys and values.

    Token t's key and value lie at own_T[t] and, where again_T[t] is not -1, there too.
    """
    twice_T = (again_T >= 0)[:, None, None]
    grad_k_TKC, grad_v_TKC = (
        grad_SKC[own_T].float() + torch.where(twice_T, grad_SKC[again_T.clamp(min=0)], 0.0).float()
        for grad_SKC in (grad_k_SKC, grad_v_SKC)
    )
    like_q, like_k = grad_q_THC, grad_q_THC.new_empty(grad_k_TKC.shape)
    parts = (
        rotate_back(grad_q_THC[None], cos_TC, sin_TC, like_q),
        rotate_back(grad_k_TKC[None], cos_TC, sin_TC, like_k),
        grad_v_TKC.to(grad_q_THC.dtype),
    )
    return torch.cat(parts, dim=1).flatten(1)


def grouped_with_delta(grad_THC: Tensor, out_THC: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradient as [G, T, R, C], and for each query the sum of gradient x output, [G, T, R]."""
    num_tokens, num_heads, width = grad_THC.shape
    shape = num_tokens, groups, num_heads // groups, width
    grad = grad_THC.reshape(shape).transpose(0, 1).contiguous()
    delta = (grad_THC.float() * out_THC.float()).sum(-1).view(shape[:3]).transpose(0, 1).contiguous()
    return grad, delta


def causal_weights(
    scores_GRS: Tensor, key_S: Tensor, seen_R1: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax weights before their division by the sum, the sum, and the log-sum-exp.

    A row sees the keys whose number in `key_S` is below its `seen_R1`; both are in fp32, whose
    comparisons fill a vector register with twice as many values as integers' do.
    """
    scaled = torch.where(key_S < seen_R1, scores_GRS.float() * scale, float("-inf"))
    largest_GR1 = scaled.amax(-1, keepdim=True)
    weights = (scaled - largest_GR1).exp()
    sum_GR1 = weights.sum(-1, keepdim=True)
    return weights.to(scores_GRS.dtype), sum_GR1, largest_GR1 + sum_GR1.log()


def causal_softmax_backward(
    scores_GRS: Tensor,
    grad_GRS: Tensor,
    lse_GR1: Tensor,
    delta_GR1: Tensor,
    key_S: Tensor,
    seen_R1: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The softmax again, and the gradient in the scores; delta is the sum of grad x softmax."""
    probs = torch.where(key_S < seen_R1, (scores_GRS.float() * scale - lse_GR1).exp(), 0.0)
    grad = probs * (grad_GRS.float() - delta_GR1) * scale
    return probs.to(scores_GRS.dtype), grad.to(scores_GRS.dtype)


def log_softmax_at(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """Log-probability of the labels, in fp32."""
    logits = logits_NV.float()
    largest_N = logits.amax(-1)
    lse_N = largest_N + (logits - largest_N[:, None]).exp().sum(-1).log()
    return logits_NV.gather(1, label_N[:, None]).squeeze(1).float() - lse_N


def softmax_in_place(logits_NV: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the labels, and the sum by which the softmax weights, which replace the logits,
    are still to be divided."""
    logits = logits_NV.float()
    chosen_N1 = logits_NV.gather(1, label_N[:, None]).float()
    largest_N1 = logits.amax(-1, keepdim=True)
    weights = (logits - largest_N1).exp()
    sum_N1 = weights.sum(-1, keepdim=True)
    logits_NV.copy_(weights)
    return (chosen_N1 - largest_N1 - sum_N1.log()).squeeze(1), sum_N1


_KERNELS = (
    rms_norm,
    rms_norm_again,
    rms_norm_backward,
    swiglu,
    swiglu_backward,
    rotate,
    rotate_back,
    grouped_with_delta,
    causal_weights,
    causal_softmax_backward,
    log_softmax_at,
    softmax_in_place,
)
_FAST: dict[Callable[..., Any], Callable[..., Any]] = {}


def run(kernel: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel, in its fast form if `use_compiled` was asked for."""
    return _FAST.get(kernel, kernel)(*args)


def use_compiled(wanted: bool, device: str = "cpu") -> bool:
    """Switch fast kernels on or off for this process; returns whether they are on.

    Stays off, with a logged reason, where there is no working compiler for them.
    """
    _FAST.clear()
    if not wanted:
        return False
    reason = why_no_triton() if device == "cuda" else why_not_compiled()
    if reason:
        logger.warning("kernels run uncompiled: %s", reason)
        return False
    if device == "cuda":
        from ray_jobs.orpo.kernels_triton import FAST

        _FAST.update({globals()[name]: fast for name, fast in FAST.items()})
    else:
        _FAST.update({kernel: torch.compile(kernel, dynamic=True) for kernel in _KERNELS})
    return True


@cache
def why_no_triton() -> str | None:
    """Why kernels written in Triton do not run in this process, or None if they do."""
    try:
        from ray_jobs.orpo.kernels_triton import swiglu as fast

        fast(torch.ones(3, 64, device="cuda"))
    except Exception as error:  # Triton raises whatever the compiler or the loader does
        return _first_line(error)
    return None


@cache
def why_not_compiled() -> str | None:
    """Why torch.compile does not work in this process, or None if it does."""
    try:
        import torch._inductor.config

        # kernels this small compile faster in this process than in a pool of helper processes
        torch._inductor.config.compile_threads = 1
        torch.compile(swiglu, dynamic=True)(torch.ones(3, 64))
    except Exception as error:  # inductor raises whatever the compiler or the loader does
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
