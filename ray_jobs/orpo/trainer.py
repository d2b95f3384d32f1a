"""TRL's ORPOTrainer, told which pairs to compute when, and what to report.

`TrlTrainer` leaves TRL's step as it is; `PackedTrainer` (packed_trainer.py) replaces it. Both compute
the same tokens in the same order.
"""

import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from ray_jobs.orpo.evaluation import PairScores, batches_of_worker, score_rows
from ray_jobs.orpo.meter import BatchFigures, TrainMeter
from ray_jobs.orpo.metrics import Metrics, check_finite, check_not_exploded, peak_memory_bytes
from ray_jobs.orpo.plan import check_shares, pair_order
from ray_jobs.orpo.schedule import put_settings
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.step import PairLogps
from ray_jobs.orpo.tokens import PairTokens

logger = logging.getLogger(__name__)

FIRST_LOSS = "first_loss.json"
"""In a checkpoint: what later losses are measured against."""


@dataclass(frozen=True)
class Job:
    """What a trainer trains on and whom it tells.

    `on_eval` is called by every worker with the same metrics; see `training.train`.
    """

    settings: TrainingSettings
    tokenizer: Any
    train_pairs: Sequence[PairTokens]
    heldout_pairs: Sequence[PairTokens]
    on_eval: Callable[[Metrics, str | None], None]
    on_log: Callable[[dict[str, float]], None] | None
    num_unused: int = 0
    """Training and held-out pairs that are not used."""
    num_cut: int = 0
    """Pairs whose prompt was cut to fit."""


class TrlRows(Dataset[dict[str, list[int]]]):
    """Pairs in the form of TRL's tokenised rows; the trainer's calls of `map` have nothing left to do."""

    def __init__(self, pairs: Sequence[PairTokens]) -> None:
        self.pairs = pairs

    def map(self, *_args: Any, **_kwargs: Any) -> "TrlRows":
        return self

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        pair = self.pairs[index]
        row = {"prompt_input_ids": list(pair.prompt), "prompt_attention_mask": [1] * len(pair.prompt)}
        for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            ids = [*pair.prompt, *answer]
            row[f"{name}_input_ids"] = ids
            row[f"{name}_attention_mask"] = [1] * len(ids)
            row[f"{name}_labels"] = [-100] * len(pair.prompt) + list(answer)
        return row


class _Schedule(TrainerCallback):
    """Evaluates and saves at the settings' steps, and always at the last one; what is saved is evaluated."""

    def __init__(self, settings: TrainingSettings, meter: TrainMeter) -> None:
        self.settings, self.meter = settings, meter

    def on_step_begin(
        self, args: ORPOConfig, state: TrainerState, control: TrainerControl, **_kwargs: Any
    ) -> None:
        del control
        self.meter.start_step()
        if self.settings.lora is not None and self.settings.lora.dropout:
            torch.manual_seed(dropout_seed(self.settings.seed, state.global_step, args.process_index))

    def on_step_end(
        self, args: ORPOConfig, state: TrainerState, control: TrainerControl, **_kwargs: Any
    ) -> TrainerControl:
        del args
        self.meter.end_step()
        step, settings = state.global_step, self.settings
        last = step >= settings.num_steps
        control.should_save = last or _is_due(step, settings.checkpoint_every_steps)
        control.should_evaluate = control.should_save or _is_due(step, settings.eval_every_steps)
        control.should_log = last or _is_due(step, settings.logging_steps)
        return control


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """What a worker drops in a step, also after a resume, for which it need not have left anything behind."""
    return random.Random(f"{seed}:{step}:{rank}").getrandbits(63)


def restore_adapter_dropout(model: nn.Module, share: float) -> None:
    """Undo, for adapters, that TRL switches all dropout off; the model's own stays off."""
    for module in model.modules():
        for layer in getattr(module, "lora_dropout", {}).values():
            if isinstance(layer, nn.Dropout):
                layer.p = share


class TrlTrainer(ORPOTrainer):
    """TRL's step on our tokens, with our order of pairs, figures and calls."""

    control: Any

    def __init__(self, model: nn.Module, args: ORPOConfig, job: Job, meter: TrainMeter) -> None:
        self.job, self.settings, self.meter = job, job.settings, meter
        self._undelivered: Metrics | None = None
        self._grad_norm: float | None = None
        self._learning_rate: float | None = None
        self._first_loss: float | None = None
        check_shares(job.settings.pairs_per_step, args.world_size)
        order = pair_order(len(job.train_pairs), job.settings)
        super().__init__(
            model=model,
            args=args,
            processing_class=job.tokenizer,
            train_dataset=TrlRows([job.train_pairs[index] for index in order]),
            eval_dataset=TrlRows(job.heldout_pairs),
            callbacks=[_Schedule(job.settings, meter)],
        )
        self.remove_callback(PrinterCallback)
        if job.settings.lora is not None:
            restore_adapter_dropout(model, job.settings.lora.dropout)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:  # it may be another trial's
            put_settings(self.optimizer, self.lr_scheduler, self.settings)
            if (kept := Path(checkpoint, FIRST_LOSS)).is_file():
                self._first_loss = json.loads(kept.read_bytes())

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None
    ) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        masks = [inputs["chosen_attention_mask"], inputs["rejected_attention_mask"]]
        num_tokens = sum(int(mask.sum()) for mask in masks)
        num_computed = 2 * len(masks[0]) * max(mask.shape[1] for mask in masks)
        share = 1 / self.current_gradient_accumulation_steps
        latest = {name: values[-1] for name, values in self._stored_metrics["train"].items()}
        sums = self.summed_over_workers([loss.item() / share, num_tokens, num_computed])
        self.record(
            BatchFigures(
                share=share,
                loss=sums[0] / self.args.world_size,
                nll=latest["nll_loss"],
                accuracy=latest["rewards/accuracies"],
                margin=latest["logps/chosen"] - latest["logps/rejected"],
                log_odds=latest["log_odds_chosen"],
                num_tokens=int(sums[1]),
                num_computed=int(sums[2]),
                num_padding=int(sums[2] - sums[1]),
                flops=0.0,
            )
        )
        return loss

    def record(self, figures: BatchFigures) -> None:
        """Add a batch's figures. Raises TrainingDiverged, on all workers alike, before the update."""
        where = f"step {self.state.global_step + 1}"
        check_finite({"loss": figures.loss, "nll": figures.nll, "margin": figures.margin}, where)
        if self._first_loss is None:
            self._first_loss = figures.loss
        check_not_exploded(figures.loss, self._first_loss, self.settings.max_loss_ratio, where)
        self.meter.add(figures)

    def summed_over_workers(self, values: Sequence[float]) -> list[float]:
        if self.args.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        sharded = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        figures = self.scores(self.model_wrapped if sharded else self.model).figures(self.settings.beta)
        self.log({f"eval_{name.removeprefix('heldout_')}": value for name, value in figures.items()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        self.keep_for_delivery(figures)
        return dict(figures)

    def scores(self, model: nn.Module) -> PairScores:
        """Held-out pairs as TRL computes them, each weighing the same; TRL would average batches."""
        pairs, args = self.job.heldout_pairs, self.args
        rows = batches_of_worker(
            len(pairs), args.per_device_eval_batch_size, args.process_index, args.world_size
        )
        return score_rows(
            model, pairs, rows, self._padded_logps, device=args.device, num_workers=args.world_size
        )

    def _padded_logps(self, model: nn.Module, pairs: Sequence[PairTokens]) -> PairLogps:
        rows = TrlRows(pairs)
        batch = self._prepare_inputs(self.data_collator([rows[index] for index in range(len(rows))]))
        chosen_B, rejected_B, _, _, nll, *_ = self.concatenated_forward(model, batch)
        # of the likelihood TRL has only the batch's mean over tokens
        share = nll * sum(pair.num_likelihood() for pair in pairs) / len(pairs)
        return PairLogps(chosen_B, rejected_B, share.expand(len(pairs)))

    def keep_for_delivery(self, heldout: dict[str, float]) -> None:
        """Held-out figures are delivered once the checkpoint of the same step is whole."""
        step = self.state.global_step
        check_finite(heldout, f"evaluation after step {step}")
        self._undelivered = Metrics(
            step=step,
            epoch=step * self.settings.pairs_per_step / len(self.job.train_pairs),
            heldout_pairs=len(self.job.heldout_pairs),
            train_pairs=len(self.job.train_pairs),
            unused_pairs=self.job.num_unused,
            cut_prompts=self.job.num_cut,
            grad_norm=self._grad_norm,
            learning_rate=self._learning_rate,
            peak_memory_bytes=peak_memory_bytes(self.args.device),
            **heldout,
            **self.meter.read_evaluation(),
        )
        if step == 0:
            self._deliver(None)

    def _deliver(self, checkpoint_dir: str | None) -> None:
        metrics, self._undelivered = self._undelivered, None
        if metrics is not None:
            self.job.on_eval(metrics, checkpoint_dir)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        saves = self.control.should_save
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._deliver(self._own_checkpoint() if saves else None)

    def _own_checkpoint(self) -> str | None:
        """The folder of the step's checkpoint, on workers that wrote something into it."""
        wrote = self.is_world_process_zero() or self.is_deepspeed_enabled
        return os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}") if wrote else None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # without TRL's model card
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            (folder / FIRST_LOSS).write_text(json.dumps(self._first_loss), encoding="utf-8")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.read_log()
            self._grad_norm, self._learning_rate = logs.get("grad_norm"), logs.get("learning_rate")
            check_finite({"gradient norm": logs.get("grad_norm", 0.0)}, f"step {self.state.global_step}")
        super().log(logs, start_time)
        if self.is_world_process_zero():
            logger.info("step %d: %s", self.state.global_step, _one_line(logs))
            if self.job.on_log is not None:
                self.job.on_log({"step": self.state.global_step, **logs})


def _one_line(logs: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in logs.items() if isinstance(value, int | float))
