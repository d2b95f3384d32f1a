"""The packed step equals TRL's for each family of the export, on small random models of its shape."""

from pathlib import Path

import pytest
import torch

from ray_jobs.orpo.models import load_tokenizer, why_not_packed
from ray_jobs.orpo.packed_trainer import step_share
from ray_jobs.orpo.packing import pack
from ray_jobs.orpo.plan import StepPlan
from ray_jobs.orpo.tokens import tokenize_pairs
from ray_jobs.orpo.training import prepare_packed_step
from tests.integration.export.export_tiny_models import FAMILIES, make_model
from tests.integration.orpo.test_trl_equality import BETA, SETTINGS, model_with_adapters, trl_step
from tests.unit.orpo.tiny import gradient, text_pairs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_step_equals_trls(family: str, tmp_path: Path) -> None:
    model_dir = str(make_model(family, tmp_path / family))
    assert why_not_packed(model_dir) is None
    pairs = tokenize_pairs(load_tokenizer(model_dir), text_pairs(4), SETTINGS).pairs
    assert max(len(pair.prompt) + len(pair.chosen) for pair in pairs) > 16
    trl_loss, _, trl_model = trl_step(model_dir, pairs, tmp_path / "trl")
    model = model_with_adapters(model_dir)
    prepare_packed_step(model, SETTINGS, tokens_per_pair=100)
    packed = pack(pairs)
    loss = step_share(model(packed=packed), StepPlan(((0, 1, 2, 3),), 4, packed.num_nll_tokens), BETA)
    loss.backward()
    assert loss.item() == pytest.approx(trl_loss.item(), rel=1e-5)
    assert torch.nn.functional.cosine_similarity(gradient(model), gradient(trl_model), dim=0) > 0.9999
    torch.testing.assert_close(gradient(model).norm(), gradient(trl_model).norm(), rtol=1e-3, atol=0)
