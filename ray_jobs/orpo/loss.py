"""The ORPO loss as plain tensor arithmetic.

Legend: B pairs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Mean log-probabilities closer to 0 (a certain answer) are taken as this: p / (1 - p) overflows as p -> 1.
_LARGEST_LOGP = -1e-6


@dataclass(frozen=True)
class OrpoLoss:
    """The loss of a batch (scalar, with its graph) and the terms that it is made of (detached)."""

    loss: Tensor
    nll: Tensor
    log_odds_B: Tensor
    log_sigmoid_B: Tensor


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact near 0 and far from it, with finite gradients on both branches.

    Source: Maechler 2012, "Accurately computing log(1 - exp(-|a|))".
    """
    near_zero = x > -math.log(2)
    # each branch sees only what it can differentiate: a masked-out inf would still make NaN gradients
    near = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, near, far)


def log_odds_ratio(chosen_logps_B: Tensor, rejected_logps_B: Tensor) -> Tensor:
    """log(odds(chosen) / odds(rejected)) in fp32, from mean log-probabilities per answer token."""
    chosen_B = chosen_logps_B.float().clamp(max=_LARGEST_LOGP)
    rejected_B = rejected_logps_B.float().clamp(max=_LARGEST_LOGP)
    return (chosen_B - rejected_B) - (log1mexp(chosen_B) - log1mexp(rejected_B))


def orpo_loss(
    chosen_logps_B: Tensor, rejected_logps_B: Tensor, chosen_nll: Tensor, *, beta: float
) -> OrpoLoss:
    """nll - mean(beta * log sigmoid(log odds ratio)), equations 4 to 7 of the ORPO paper.

    `chosen_logps_B` and `rejected_logps_B` are mean log-probabilities per answer token; `chosen_nll`
    is the mean negative log-likelihood per token over prompts and chosen answers (a scalar).
    """
    log_odds_B = log_odds_ratio(chosen_logps_B, rejected_logps_B)
    log_sigmoid_B = torch.nn.functional.logsigmoid(log_odds_B)
    loss = chosen_nll.float() - beta * log_sigmoid_B.mean()
    return OrpoLoss(loss, chosen_nll.detach().float(), log_odds_B.detach(), log_sigmoid_B.detach())
