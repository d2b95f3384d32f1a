"""The packed step against the plain one: every answer alone behind its prompt, in a model untouched."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.orpo import attention_blocks, kernels
from ray_jobs.orpo import fused as fused_layers
from ray_jobs.orpo.fused import fuse_layers, why_not_fused
from ray_jobs.orpo.loss import orpo_loss
from ray_jobs.orpo.models import PACKED_FAMILIES, attention_window, causal_lm_of, load_model, why_not_packed
from ray_jobs.orpo.packing import pack
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.step import PairLogps, enable_packed_step
from ray_jobs.orpo.tokens import PairTokens
from ray_jobs.orpo.training import prepare_packed_step
from tests.unit.orpo.tiny import gradient, random_pairs, tiny_llama, with_adapters

PAIRS = random_pairs(5)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "BLOCK", 16)


def plain_logps(model: Any, pairs: list[PairTokens]) -> PairLogps:
    chosen, rejected, nll = [], [], []
    for pair in pairs:
        for answer, means in ((pair.chosen, chosen), (pair.rejected, rejected)):
            ids = torch.tensor([[*pair.prompt, *answer]])
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
            means.append(logps[len(pair.prompt) - 1 :].mean())
            if answer is pair.chosen:
                nll.append(-logps.sum())
    return PairLogps(torch.stack(chosen), torch.stack(rejected), torch.stack(nll))


def loss_of(logps: PairLogps, pairs: list[PairTokens]) -> torch.Tensor:
    return orpo_loss(
        logps.chosen_B, logps.rejected_B, logps.nll_sum_B.sum() / pack(pairs).num_nll_tokens, beta=0.3
    ).loss


def packed_model(model: Any, *, fused: bool) -> Any:
    causal_lm = causal_lm_of(model)
    enable_packed_step(causal_lm)
    if fused:
        assert why_not_fused(causal_lm) is None
        fuse_layers(causal_lm)
    return model


def assert_equal_steps(make: Any, *, fused: bool) -> None:
    plain, packed = make().double(), packed_model(make().double(), fused=fused)
    wanted, got = plain_logps(plain, PAIRS), packed(packed=pack(PAIRS))
    torch.testing.assert_close(got.chosen_B.double(), wanted.chosen_B, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.rejected_B.double(), wanted.rejected_B, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.nll_sum_B.double(), wanted.nll_sum_B, rtol=1e-6, atol=1e-6)
    loss_of(wanted, PAIRS).backward()
    loss_of(got, PAIRS).backward()
    wanted_gradient, got_gradient = gradient(plain), gradient(packed)
    assert torch.nn.functional.cosine_similarity(got_gradient, wanted_gradient, dim=0) > 0.99999
    torch.testing.assert_close(got_gradient.norm(), wanted_gradient.norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_loss_and_gradients_equal_the_plain_step(fused: bool, adapters: bool) -> None:
    make = (lambda: with_adapters(tiny_llama())) if adapters else tiny_llama
    assert_equal_steps(make, fused=fused)


@pytest.mark.parametrize(
    "targets", [["q_proj"], ["v_proj", "up_proj"], ["k_proj", "gate_proj", "down_proj"], ["q_proj", "v_proj"]]
)
def test_adapters_on_some_of_the_layers_that_are_joined(targets: list[str]) -> None:
    assert_equal_steps(lambda: with_adapters(tiny_llama(), target_modules=targets), fused=True)


def test_untied_output_layer() -> None:
    assert_equal_steps(lambda: tiny_llama(tie_word_embeddings=False), fused=True)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_checkpointing_changes_nothing(fused: bool) -> None:
    def make() -> Any:
        model = tiny_llama()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        return with_adapters(model)

    assert_equal_steps(make, fused=fused)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointed_layers_are_computed_again(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    layer = fused_layers._layer
    monkeypatch.setattr(fused_layers, "_layer", lambda *args: (calls.append(1), layer(*args))[1])
    model = tiny_llama()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = packed_model(with_adapters(model), fused=True)
    loss_of(model(packed=pack(PAIRS)), PAIRS).backward()
    assert len(calls) == 2 * (2 if checkpointing else 1)


def test_dora_runs_unfused() -> None:
    assert why_not_fused(causal_lm_of(with_adapters(tiny_llama(), use_dora=True))) is not None
    assert_equal_steps(lambda: with_adapters(tiny_llama(), use_dora=True), fused=False)


FAMILIES = {
    "mistral": {"sliding_window": None, "head_dim": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 1024},
    "smollm3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 5},
}
WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 9, "head_dim": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 9, "num_hidden_layers": 7},
}
"""Layers that see 9 positions back, alone or between layers that see all."""


def make_family(family: str, changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 300,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(sizes | changes))
    return AutoModelForCausalLM.from_config(config).train()


def test_the_verified_families_are_those_that_are_tested() -> None:
    assert {*FAMILIES, "llama"} == PACKED_FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_verified_family(family: str) -> None:
    def make() -> Any:
        return make_family(family, FAMILIES[family])

    for fused in {False, why_not_fused(make()) is None}:
        assert_equal_steps(make, fused=fused)


@pytest.mark.parametrize("family", WINDOWS)
def test_attention_windows_are_kept(family: str) -> None:
    assert attention_window(make_family(family, WINDOWS[family]).config) == 9
    assert_equal_steps(lambda: make_family(family, WINDOWS[family]), fused=False)


def test_layers_with_a_narrow_window_are_not_fused(caplog: pytest.LogCaptureFixture) -> None:
    model = make_family("mistral", WINDOWS["mistral"])
    caplog.set_level("INFO")
    prepare_packed_step(model, TrainingSettings(max_pair_tokens=16, compile="off"), tokens_per_pair=10)
    assert "not fused: its attention sees only 9 tokens back" in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"final_logit_softcapping": 30.0}, "its logits are capped"),
        ({"attn_logit_softcapping": 50.0}, "its attention scores are capped"),
        ({"use_bidirectional_attention": True}, "its tokens see later ones"),
        ({"sliding_window": 9}, None),
    ],
)
def test_what_the_packed_step_does_not_compute_is_left_to_trl(
    changes: dict[str, Any], says: str | None, tmp_path: Path
) -> None:
    make_family("gemma3_text", FAMILIES["gemma3_text"] | changes).save_pretrained(tmp_path)
    reason = why_not_packed(str(tmp_path))
    assert reason is None if says is None else says in str(reason)


def test_a_models_own_dropout_is_off(tmp_path: Path) -> None:
    make_family("gemma3_text", FAMILIES["gemma3_text"] | {"attention_dropout": 0.5}).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), TrainingSettings(lora=None), torch.device("cpu")).train()
    assert why_not_packed(str(tmp_path)) is None
    dropped = {layer.self_attn.attention_dropout for layer in model.model.layers}
    assert dropped == {0.0}


@pytest.mark.parametrize(("max_pair_tokens", "warns"), [(64, False), (65, True)])
def test_longrope_above_its_first_window_is_warned_of(
    max_pair_tokens: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama()
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    settings = TrainingSettings(max_pair_tokens=max_pair_tokens, compile="off")
    prepare_packed_step(model, settings, tokens_per_pair=10)
    assert ("above 64 tokens" in caplog.text) == warns


def scores(model: Any, pairs: list[PairTokens]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        result = model(packed=pack(pairs))
    rows = torch.stack([result.chosen_B, result.rejected_B, result.nll_sum_B], dim=1)
    return {pair.id: row for pair, row in zip(pairs, rows, strict=True)}


@pytest.mark.parametrize("fused", [False, True])
def test_order_and_neighbours_change_nothing(fused: bool) -> None:
    model = packed_model(tiny_llama().double(), fused=fused)
    together, reversed_order = scores(model, PAIRS), scores(model, PAIRS[::-1])
    for pair in PAIRS:
        alone = scores(model, [pair])[pair.id]
        torch.testing.assert_close(together[pair.id], alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(reversed_order[pair.id], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_bf16_is_as_close_to_the_truth_as_the_plain_step(fused: bool) -> None:
    exact = plain_logps(tiny_llama(), PAIRS)
    plain = plain_logps(tiny_llama().bfloat16(), PAIRS)
    packed = packed_model(tiny_llama().bfloat16(), fused=fused)(packed=pack(PAIRS))
    allowed = 1.5 * (plain.nll_sum_B - exact.nll_sum_B).abs().max()
    assert (packed.nll_sum_B - exact.nll_sum_B).abs().max() < allowed


@pytest.mark.parametrize("adapters", [False, True])
def test_autocast_computes_in_bf16_and_trains_fp32(adapters: bool) -> None:
    model = packed_model(with_adapters(tiny_llama()) if adapters else tiny_llama(), fused=True)
    exact = loss_of(model(packed=pack(PAIRS)), PAIRS)
    exact.backward()
    exact_gradient = gradient(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = model(packed=pack(PAIRS))
    loss = loss_of(logps, PAIRS)
    loss.backward()
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.requires_grad} == {
        torch.float32
    }
    assert torch.nn.functional.cosine_similarity(gradient(model), exact_gradient, dim=0) > 0.98


def test_kernels_run_uncompiled_where_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    kernels.why_not_compiled.cache_clear()
    assert kernels.use_compiled(True) is False
    kernels.why_not_compiled.cache_clear()
    assert "no C++ compiler found" in caplog.text
