"""The packed step on a CUDA GPU; skipped where there is none.

    pytest tests/integration/orpo/test_gpu.py

Needs neither Ray nor a hub.
"""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_jobs.orpo import attention_varlen
from ray_jobs.orpo.attention import attend, attend_pairs
from ray_jobs.orpo.models import causal_lm_of, load_model, load_tokenizer
from ray_jobs.orpo.packed_trainer import step_share
from ray_jobs.orpo.packing import PackedPairs, pack
from ray_jobs.orpo.plan import StepPlan
from ray_jobs.orpo.settings import LoraSettings, TrainingSettings
from ray_jobs.orpo.tokens import PairTokens, tokenize_pairs
from ray_jobs.orpo.training import prepare_packed_step, train
from tests.integration.export.export_tiny_models import FAMILIES, make_model
from tests.unit.orpo.tiny import gradient, random_pairs, save_tiny_model, text_pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

BETA = 0.2
FP32 = TrainingSettings(precision="fp32", beta=BETA, num_steps=1, pairs_per_step=4, compile="off")
BF16 = FP32.model_copy(update={"precision": "bf16"})
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.06,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), **WIDE)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.cpu(), other.cpu(), dim=0))


@pytest.mark.parametrize("window", [None, 1, 9, 40])
@pytest.mark.parametrize(
    ("heads", "key_heads", "width"), [(4, 4, 64), (6, 2, 64), (8, 1, 128), (4, 2, 96), (2, 1, 256)]
)
def test_flash_attention_equals_exact_attention(
    heads: int, key_heads: int, width: int, window: int | None
) -> None:
    spans = pack(random_pairs(7, longest=150)).spans
    torch.manual_seed(0)
    shapes = [(1, count, spans[-1].end, width) for count in (heads, key_heads, key_heads)]
    exact = [torch.randn(shape, device="cuda").bfloat16().double().requires_grad_() for shape in shapes]
    inputs = [x.detach().bfloat16().requires_grad_() for x in exact]
    assert attention_varlen.has_kernel(inputs[0], width)
    grad = torch.randn(shapes[0], device="cuda").bfloat16()
    got = attend(*inputs, spans, 0.1, window)
    wanted = attend_pairs(*exact, spans, 0.1, window)
    got.backward(grad)
    wanted.backward(grad.double())
    for x, y in ((got, wanted), *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))):
        # a query that sees one key has no gradient, but for rounding
        assert (x.double() - y).norm() < 0.01 * y.norm() + 1e-4 * grad.norm()


def model_on(device: str, model_dir: str, settings: TrainingSettings) -> Any:
    model = load_model(model_dir, settings, torch.device("cpu"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device).train()


def packed_step(model: Any, packed: PackedPairs) -> Tensor:
    plan = StepPlan((tuple(range(packed.num_pairs)),), packed.num_pairs, packed.num_nll_tokens)
    loss = step_share(model(packed=packed), plan, BETA)
    loss.backward()
    return loss.detach().cpu()


def test_loss_and_gradients_equal_trls_in_fp32(model_dir: str, tmp_path: Path) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from ray_jobs.orpo.trainer import TrlRows

    pairs = tokenize_pairs(load_tokenizer(model_dir), text_pairs(4), FP32).pairs
    trl_model = model_on("cuda", model_dir, FP32)
    args = ORPOConfig(
        output_dir=str(tmp_path), bf16=False, beta=BETA, report_to=[], gradient_checkpointing=False
    )
    rows = TrlRows(pairs)
    trainer = ORPOTrainer(
        model=trl_model, args=args, train_dataset=rows, processing_class=load_tokenizer(model_dir)
    )
    batch = trainer._prepare_inputs(trainer.data_collator([rows[index] for index in range(len(rows))]))
    trl_loss, _ = trainer.get_batch_loss_metrics(trl_model, batch)
    trl_loss.backward()

    model = model_on("cuda", model_dir, FP32)
    prepare_packed_step(model, FP32, tokens_per_pair=100)
    loss = packed_step(model, pack(pairs, "cuda"))
    assert loss.item() == pytest.approx(trl_loss.item(), rel=1e-5)
    assert cosine(gradient(model), gradient(trl_model)) > 0.99999


@pytest.mark.parametrize("compile_kernels", ["off", "on"])
@pytest.mark.parametrize("family", ["llama-here", *FAMILIES])
def test_bf16_on_the_gpu_is_close_to_fp32_on_the_cpu(
    family: str, compile_kernels: str, model_dir: str, tmp_path: Path
) -> None:
    if compile_kernels == "on" and family != "llama-here":
        pytest.skip("one family is enough to show that the compiled kernels are right")
    folder = model_dir if family == "llama-here" else str(make_model(family, tmp_path / family))
    pairs = tokenize_pairs(load_tokenizer(folder), text_pairs(4), FP32).pairs
    exact = model_on("cpu", folder, FP32)
    prepare_packed_step(exact, FP32, tokens_per_pair=100)
    wanted = packed_step(exact, pack(pairs))
    settings = BF16.model_copy(update={"compile": compile_kernels})
    model = model_on("cuda", folder, settings)
    prepare_packed_step(model, settings, tokens_per_pair=100)
    loss = packed_step(model, pack(pairs, "cuda"))
    assert loss.item() == pytest.approx(wanted.item(), rel=0.02)
    assert cosine(gradient(model), gradient(exact)) > 0.98


def test_gradient_checkpointing_changes_no_gradient(model_dir: str) -> None:
    packed = pack(random_pairs(4), "cuda")
    gradients = []
    for checkpointing in (False, True):
        settings = BF16.model_copy(update={"gradient_checkpointing": checkpointing})
        model = model_on("cuda", model_dir, settings)
        prepare_packed_step(model, settings, tokens_per_pair=100)
        packed_step(model, packed)
        gradients.append(gradient(model))
    assert cosine(*gradients) > 0.9999


def test_neighbours_in_a_row_change_nothing(model_dir: str) -> None:
    pairs = random_pairs(5)
    model = model_on("cuda", model_dir, BF16).eval()
    prepare_packed_step(model, BF16, tokens_per_pair=100)
    with torch.no_grad():
        together = model(packed=pack(pairs, "cuda"))
        alone = [model(packed=pack([pair], "cuda")) for pair in pairs]
    torch.testing.assert_close(
        together.chosen_B, torch.cat([one.chosen_B for one in alone]), rtol=1e-2, atol=1e-2
    )
    torch.testing.assert_close(
        together.rejected_B, torch.cat([one.rejected_B for one in alone]), rtol=1e-2, atol=1e-2
    )


TRAINING = TrainingSettings(
    num_steps=8,
    pairs_per_step=8,
    max_batch_tokens=400,
    max_pair_tokens=200,
    learning_rate=3e-3,
    lora=LoraSettings(rank=8),
    logging_steps=1,
    compile="off",
    checkpoint_every_steps=4,
    eval_at_start=True,
)


class Run:
    """A training on the GPU, with what it told."""

    def __init__(
        self, settings: TrainingSettings, model_dir: str, folder: Path, resume: str | None = None
    ) -> None:
        self.heldout: list[float] = []
        self.logs: list[dict[str, float]] = []
        self.outcome = train(
            settings,
            model_dir=model_dir,
            train_pairs=text_pairs(40),
            heldout_pairs=text_pairs(9, seed=1),
            output_dir=str(folder),
            on_eval=lambda metrics, _folder: self.heldout.append(metrics.heldout_loss),
            resume_from=resume,
            on_log=self.logs.append,
        )


def test_trains_evaluates_saves_and_resumes(model_dir: str, tmp_path: Path) -> None:
    straight = Run(TRAINING, model_dir, tmp_path / "straight")
    assert straight.outcome.step_used == "packed"
    assert straight.heldout[-1] < straight.heldout[0]
    assert all(0 < log["mfu"] < 1 for log in straight.logs if "mfu" in log)
    resumed = Run(
        TRAINING.model_copy(update={"eval_at_start": False}),
        model_dir,
        tmp_path / "resumed",
        str(tmp_path / "straight" / "checkpoint-4"),
    )
    # FlashAttention adds up the gradient of queries in no fixed order
    assert resumed.heldout[-1] == pytest.approx(straight.heldout[-1], rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": LoraSettings(rank=8, dora=True)},
        {"lora": LoraSettings(rank=8, dropout=0.1)},
        {"lora": None, "learning_rate": 1e-3},
        {"precision": "fp32"},
        {"gradient_checkpointing": True},
        {"step": "trl"},
    ],
    ids=str,
)
def test_every_way_to_train_learns(changes: dict[str, Any], model_dir: str, tmp_path: Path) -> None:
    run = Run(TRAINING.model_copy(update=changes), model_dir, tmp_path)
    assert run.heldout[-1] < run.heldout[0]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_four_bit_weights_learn(model_dir: str, tmp_path: Path) -> None:
    run = Run(TRAINING.model_copy(update={"qlora": True}), model_dir, tmp_path)
    assert run.outcome.step_used == "packed"
    assert run.heldout[-1] < run.heldout[0]


def test_a_training_gives_its_memory_back(model_dir: str, tmp_path: Path) -> None:
    import gc

    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    Run(TRAINING.model_copy(update={"num_steps": 2}), model_dir, tmp_path)
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 2**20


def test_nothing_of_size_tokens_times_vocabulary_is_kept(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, **WIDE, vocab_size=100_000)
    settings = BF16.model_copy(update={"lora": LoraSettings(rank=4), "compile": "on"})
    model = model_on("cuda", folder, settings)
    prepare_packed_step(model, settings, tokens_per_pair=100)
    pairs = [replace(pair, prompt=pair.prompt * 40) for pair in random_pairs(8)]
    packed = pack([PairTokens(p.id, p.prompt, p.chosen * 40, p.rejected * 40) for p in pairs], "cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    packed_step(model, packed)
    logits = len(packed.label_N) * causal_lm_of(model).config.vocab_size * 2
    assert logits > 3 * 2**30
    assert torch.cuda.max_memory_allocated() - before < logits / 3
