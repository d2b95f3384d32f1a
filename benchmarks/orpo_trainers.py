"""TRL's trainer and the product's, made ready to meet the same pairs in the same order."""

import tempfile
from collections.abc import Sequence
from typing import Any

from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.tokens import PairTokens


def make_trainer(
    name: str, model_dir: str, pairs: Sequence[PairTokens], settings: TrainingSettings, device: Any
) -> Any:
    """TRL's trainer as it is (`trl`), or ours without evaluation and checkpoints (`packed`)."""
    return (_trl if name == "trl" else _packed)(model_dir, pairs, settings, device)


def _trl(model_dir: str, pairs: Sequence[PairTokens], settings: TrainingSettings, device: Any) -> Any:
    from torch.utils.data import SequentialSampler
    from trl.experimental.orpo import ORPOTrainer

    from ray_jobs.orpo.models import load_model, load_tokenizer
    from ray_jobs.orpo.trainer import TrlRows
    from ray_jobs.orpo.training import trainer_arguments

    folder = tempfile.mkdtemp(prefix="orpo-trl-")
    # weights in bf16 as well as autocast: TRL's faster way to run on this hardware
    args = trainer_arguments(settings.model_copy(update={"step": "trl"}), folder, device)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = settings.pairs_per_step, 1
    trainer = ORPOTrainer(
        model=load_model(model_dir, settings, device),
        args=args,
        processing_class=load_tokenizer(model_dir),
        train_dataset=TrlRows(pairs),
    )
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    return trainer


def _packed(model_dir: str, pairs: Sequence[PairTokens], settings: TrainingSettings, _device: Any) -> Any:
    from ray_jobs.orpo.models import load_tokenizer
    from ray_jobs.orpo.packed_trainer import PackedTrainer
    from ray_jobs.orpo.trainer import Job
    from ray_jobs.orpo.training import build_trainer

    job = Job(settings, load_tokenizer(model_dir), pairs, pairs[:1], lambda *_: None, None)
    trainer, _ = build_trainer(job, model_dir, tempfile.mkdtemp(prefix="orpo-packed-"))
    assert isinstance(trainer, PackedTrainer)
    trainer.evaluate = lambda *_args, **_kwargs: {}
    trainer._save_checkpoint = lambda *_args, **_kwargs: None
    trainer.plans = plans_in_order(pairs, settings)
    return trainer


def plans_in_order(pairs: Sequence[PairTokens], settings: TrainingSettings) -> list[Any]:
    """Each step's pairs in one row, as TRL has them in one batch."""
    from ray_jobs.orpo.plan import StepPlan

    size = settings.pairs_per_step
    batches = [range(start, start + size) for start in range(0, len(pairs), size)]
    return [
        StepPlan((tuple(batch),), size, sum(len(pairs[i].prompt) + len(pairs[i].chosen) - 1 for i in batch))
        for batch in batches
    ]
