"""One ORPO training, in the process (or group of processes) that calls it."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ray_jobs.errors import DataError, ModelError
from ray_jobs.orpo.metrics import Metrics
from ray_jobs.orpo.settings import MANY_UNUSED, TrainingSettings
from ray_jobs.records import Pair

if TYPE_CHECKING:
    from ray_jobs.orpo.tokens import TokenizedPairs

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """What a finished training leaves behind."""

    metrics: Metrics
    """The last evaluation."""
    checkpoint_dir: str
    """Adapter (or whole model), optimiser and trainer state after the last step."""
    step_used: str
    """`packed` or `trl`; `trl` where the packed step cannot compute the model."""
    num_train_pairs: int
    num_heldout_pairs: int
    skipped: dict[str, int]
    """Reason -> pairs, training and held-out, that were not used."""
    num_cut_prompts: int
    """Pairs whose prompt was cut to fit."""


def train(
    settings: TrainingSettings,
    *,
    model_dir: str,
    train_pairs: Sequence[Pair],
    heldout_pairs: Sequence[Pair],
    output_dir: str,
    on_eval: Callable[[Metrics, str | None], None],
    resume_from: str | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> TrainOutcome:
    """Train the model in `model_dir` on preference pairs.

    In a torch.distributed group every member calls this with the same arguments. `on_eval` is called
    on every member with the same metrics after each evaluation, and with the checkpoint's folder where
    the step has one and this member wrote part of it (rank 0; with DeepSpeed every rank). `on_log` is
    called on rank 0 with each log line's figures. `resume_from` is such a checkpoint folder.

    Raises TrainingDiverged when a loss is not finite or explodes, DataError when no pair is usable,
    ModelError when the model cannot be.
    """
    from ray_jobs.orpo.models import load_tokenizer
    from ray_jobs.orpo.tokens import tokenize_pairs
    from ray_jobs.orpo.trainer import Job

    tokenizer = load_tokenizer(model_dir)
    train_tokens = tokenize_pairs(tokenizer, train_pairs, settings)
    heldout_tokens = tokenize_pairs(tokenizer, heldout_pairs, settings)
    for name, tokens in (("training", train_tokens), ("held-out", heldout_tokens)):
        say_what_is_used(name, tokens)
        if not tokens.pairs:
            raise DataError(f"no usable {name} pairs; not used: {tokens.reasons or 'none given'}")
    num_unused = len(train_tokens.skipped) + len(heldout_tokens.skipped)
    num_cut = train_tokens.num_cut_prompts + heldout_tokens.num_cut_prompts
    evaluations: list[Metrics] = []

    def keep_and_pass_on(metrics: Metrics, checkpoint_dir: str | None) -> None:
        evaluations.append(metrics)
        on_eval(metrics, checkpoint_dir)

    job = Job(
        settings,
        tokenizer,
        train_tokens.pairs,
        heldout_tokens.pairs,
        keep_and_pass_on,
        on_log,
        num_unused,
        num_cut,
    )
    trainer, step_used = build_trainer(job, model_dir, output_dir)
    trainer.args.eval_on_start = settings.eval_at_start and resume_from is None
    trainer.train(resume_from_checkpoint=resume_from)
    return TrainOutcome(
        evaluations[-1],
        os.path.join(output_dir, f"checkpoint-{settings.num_steps}"),
        step_used,
        len(train_tokens.pairs),
        len(heldout_tokens.pairs),
        {
            reason: train_tokens.reasons.get(reason, 0) + heldout_tokens.reasons.get(reason, 0)
            for reason in sorted({*train_tokens.reasons, *heldout_tokens.reasons})
        },
        num_cut,
    )


def say_what_is_used(name: str, tokens: "TokenizedPairs") -> None:
    """Logs how many pairs of a split are used, how many of them cut, and why others are not; a warning where
    these are many."""
    num_used, num_unused = len(tokens.pairs), len(tokens.skipped)
    cut = f", {tokens.num_cut_prompts} of them with a cut prompt" if tokens.num_cut_prompts else ""
    level = logging.WARNING if num_unused > MANY_UNUSED * (num_used + num_unused) else logging.INFO
    logger.log(level, "%s pairs: %d used%s, not used: %s", name, num_used, cut, tokens.reasons or "none")


def build_trainer(job: Any, model_dir: str, output_dir: str) -> tuple[Any, str]:
    """The trainer for a job and the step that it uses; falls back to TRL's step with a logged reason."""
    from ray_jobs.orpo.flops import count_flops, matrix_rate
    from ray_jobs.orpo.meter import TrainMeter
    from ray_jobs.orpo.models import (
        causal_lm_of,
        load_model,
        multiplies_bf16,
        training_device,
        uses_bf16,
        why_not_packed,
    )
    from ray_jobs.orpo.packed_trainer import PackedTrainer
    from ray_jobs.orpo.trainer import TrlTrainer

    settings: TrainingSettings = job.settings
    if settings.step == "packed" and (reason := why_not_packed(model_dir)):
        if not settings.learns_prompts:
            raise ModelError(f"training.likelihood: answer needs the packed step, which cannot be: {reason}")
        logger.warning("training.step: trl is used instead of packed: %s", reason)
        settings = settings.model_copy(update={"step": "trl"})
        job = replace(job, settings=settings)
    device = training_device()
    if device.type == "cpu":
        keep_freed_memory()
    if settings.precision == "bf16" and not multiplies_bf16(device):
        logger.warning("training.precision: bf16 is emulated here, and much slower than fp32")
    if settings.deepspeed is not None and torch.distributed.is_initialized():
        import deepspeed

        deepspeed.init_distributed()  # adopts the group; ZeRO-3 asks for its size while the model loads
    args = trainer_arguments(settings, output_dir, device)  # before the model: ZeRO-3 shards it while loading
    model = load_model(model_dir, settings, device)
    rate = matrix_rate(device, torch.bfloat16 if uses_bf16(settings, device) else torch.float32)
    meter = TrainMeter(rate * args.world_size)
    if settings.step == "trl":
        return TrlTrainer(model, args, job, meter), "trl"
    num_tokens = sum(pair.num_shared for pair in job.train_pairs)
    prepare_packed_step(model, settings, num_tokens / len(job.train_pairs))
    return PackedTrainer(model, args, job, meter, count_flops(causal_lm_of(model))), "packed"


def keep_freed_memory() -> None:
    """Let glibc reuse a step's memory in the next one instead of giving it back and faulting it in again.

    Source of the numbers: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, whose largest value is
    32 MiB. Elsewhere it does nothing.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**30)
        libc.mallopt(-3, 32 * 2**20)


MIN_TOKENS_TO_COMPILE = 50_000


def prepare_packed_step(model: Any, settings: TrainingSettings, tokens_per_pair: float) -> None:
    """Give a loaded model the packed step, as fast as the model, the settings and the machine allow."""
    from ray_jobs.orpo import kernels
    from ray_jobs.orpo.fused import fuse_layers, why_not_fused
    from ray_jobs.orpo.models import attention_window, causal_lm_of, factors_change_at, training_device
    from ray_jobs.orpo.step import enable_packed_step

    causal_lm = causal_lm_of(model)
    enable_packed_step(causal_lm)
    num_tokens = settings.num_steps * settings.pairs_per_step * tokens_per_pair
    wanted = settings.compile == "on" or (settings.compile == "auto" and num_tokens >= MIN_TOKENS_TO_COMPILE)
    logger.info(
        "compiled kernels: %s", "on" if kernels.use_compiled(wanted, training_device().type) else "off"
    )
    stage = (settings.deepspeed or {}).get("zero_optimization", {}).get("stage", 0)
    window = attention_window(causal_lm.config)
    changes_at = factors_change_at(causal_lm.config)
    if changes_at is not None and changes_at < settings.max_pair_tokens:
        logger.warning(
            "training.max_pair_tokens: above %d tokens a pair changes how the others of its row are computed "
            "(longrope)",
            changes_at,
        )
    if stage == 3:
        reason: str | None = "ZeRO-3 gathers weights module by module"
    elif window is not None and window < settings.max_pair_tokens:
        reason = f"its attention sees only {window} tokens back"
    else:
        reason = why_not_fused(causal_lm)
    if reason:
        logger.info("decoder layers are not fused: %s", reason)
    else:
        fuse_layers(causal_lm)


def trainer_arguments(settings: TrainingSettings, output_dir: str, device: torch.device) -> Any:
    """The settings in the words of transformers' Trainer."""
    from trl.experimental.orpo import ORPOConfig

    from ray_jobs.orpo.models import uses_bf16

    on_cpu = device.type == "cpu"
    trackers = [name for name in ("tensorboard", "mlflow") if getattr(settings, name)]
    bf16 = uses_bf16(settings, device)
    # weights that are held in bf16 need no autocast; DeepSpeed takes its type from here too
    autocast = bf16 and (settings.lora is None or settings.step == "trl" or settings.deepspeed is not None)
    arguments = ORPOConfig(
        output_dir=output_dir,
        max_steps=settings.num_steps,
        learning_rate=settings.learning_rate,
        beta=settings.beta,
        max_length=settings.max_pair_tokens,
        warmup_steps=math.ceil(settings.warmup_share * settings.num_steps),
        lr_scheduler_type=_SCHEDULES[settings.lr_schedule],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        logging_nan_inf_filter=False,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=settings.keep_checkpoints,
        report_to=trackers,
        disable_tqdm=True,
        seed=settings.seed,
        bf16=autocast,
        gradient_checkpointing=False,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and _num_workers() > 1 else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not on_cpu,
        deepspeed=deepspeed_config(settings),
        **_batch_sizes(settings),
    )
    # Without a process group transformers spreads a batch over all GPUs that it sees (torch's DataParallel).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def _batch_sizes(settings: TrainingSettings) -> dict[str, int]:
    """Batch sizes for the trainer: the packed step groups pairs itself, TRL's takes what fits padded."""
    if settings.step == "packed":
        return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    per_worker = max(1, settings.pairs_per_step // _num_workers())
    fits = max(1, settings.max_batch_tokens // (2 * settings.max_pair_tokens))
    size = max(n for n in range(1, min(fits, per_worker) + 1) if per_worker % n == 0)
    return {
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": size,
        "gradient_accumulation_steps": per_worker // size,
    }


def _num_workers() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any] | None:
    """The DeepSpeed block with what follows from the other settings filled in."""
    if settings.deepspeed is None:
        return None
    filled = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
    }
    zero = settings.deepspeed.get("zero_optimization", {})
    if zero.get("stage") == 3:  # else a whole model's weights would lie in a checkpoint as shards only
        zero = {"stage3_gather_16bit_weights_on_model_save": True} | zero
    return filled | settings.deepspeed | ({"zero_optimization": zero} if zero else {})
