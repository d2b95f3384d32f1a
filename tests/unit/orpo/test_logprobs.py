import pytest
import torch

from ray_jobs.orpo import logprobs
from ray_jobs.orpo.logprobs import token_logps


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logprobs.CHUNK_BYTES, "cpu", 3 * 50 * 8)


def made(trains_weight: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 8, dtype=torch.float64, requires_grad=trains_weight)
    return hidden, weight, torch.randint(50, (11,)), torch.randn(11)


@pytest.mark.parametrize("trains_weight", [False, True])
def test_values_and_gradients_equal_the_whole_log_softmax(trains_weight: bool) -> None:
    hidden, weight, labels, grad = made(trains_weight)
    logps = token_logps(hidden, weight, labels)
    logps.backward(grad)
    wanted_hidden, wanted_weight = (t.detach().clone().requires_grad_(True) for t in (hidden, weight))
    whole = (wanted_hidden @ wanted_weight.t()).log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    whole.backward(grad.double())
    torch.testing.assert_close(logps.double(), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(hidden.grad, wanted_hidden.grad, rtol=1e-6, atol=1e-6)
    if trains_weight:
        torch.testing.assert_close(weight.grad, wanted_weight.grad, rtol=1e-5, atol=1e-5)


def test_nothing_of_tokens_times_vocabulary_is_kept() -> None:
    hidden, weight, labels, _ = made(trains_weight=False)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        token_logps(hidden, weight, labels)
    assert sum(tensor.numel() for tensor in kept) == hidden.numel()


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.full((1, 1), 1e4, requires_grad=True)
    logps = token_logps(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    logps.backward()
    assert logps.item() == pytest.approx(-2e4)
    assert hidden.grad.item() == pytest.approx(-2.0)
