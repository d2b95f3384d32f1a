import math

import pytest
import torch

from ray_jobs.orpo.loss import log1mexp, log_odds_ratio, orpo_loss


def test_loss_equals_numbers_worked_out_by_hand() -> None:
    # p = 1/2 against p = 1/3: odds 1 and 1/2, ratio 2, sigmoid(log 2) = 2/3
    # p = 1/4 against p = 1/2: odds 1/3 and 1, ratio 1/3, sigmoid(log 1/3) = 1/4
    chosen = torch.tensor([1 / 2, 1 / 4]).log()
    rejected = torch.tensor([1 / 3, 1 / 2]).log()
    result = orpo_loss(chosen, rejected, torch.tensor(1.5), beta=0.1)
    assert result.log_odds_B.tolist() == pytest.approx([math.log(2), math.log(1 / 3)], rel=1e-6)
    expected = 1.5 - 0.1 * (math.log(2 / 3) + math.log(1 / 4)) / 2
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)


def test_beta_zero_leaves_the_likelihood_alone() -> None:
    result = orpo_loss(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor(0.7), beta=0.0)
    assert result.loss.item() == pytest.approx(0.7)


@pytest.mark.parametrize("logp", [-1e-10, -1e-4, -0.5, -math.log(2), -1.0, -20.0, -300.0])
def test_log1mexp_is_exact_over_the_whole_range(logp: float) -> None:
    x = torch.tensor(logp, dtype=torch.float64)
    exact = math.log(-math.expm1(logp)) if logp > -1 else math.log1p(-math.exp(logp))
    assert log1mexp(x).item() == pytest.approx(exact, rel=1e-12)


def test_gradient_is_the_derivative_of_the_log_odds() -> None:
    # d/dx [x - log(1 - e^x)] = 1 / (1 - e^x)
    chosen = torch.tensor([-0.1, -0.69, -3.0, -80.0], requires_grad=True)
    log_odds_ratio(chosen, torch.full((4,), -1.0)).sum().backward()
    expected = 1 / -torch.expm1(chosen.detach().double())
    torch.testing.assert_close(chosen.grad.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e4])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1e4])
def test_certain_and_impossible_answers_stay_finite(chosen: float, rejected: float) -> None:
    logps = torch.tensor([[chosen], [rejected]], requires_grad=True)
    result = orpo_loss(logps[0], logps[1], torch.tensor(1.0), beta=0.1)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert torch.isfinite(logps.grad).all()


def test_half_precision_inputs_are_computed_in_fp32() -> None:
    chosen = torch.tensor([-0.001], dtype=torch.bfloat16)
    rejected = torch.tensor([-1.0], dtype=torch.bfloat16)
    result = orpo_loss(chosen, rejected, torch.tensor(1.0, dtype=torch.bfloat16), beta=0.1)
    wide = orpo_loss(chosen.float(), rejected.float(), torch.tensor(1.0), beta=0.1)
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == wide.loss.item()
