"""The trainer whose step computes packed pairs."""

import math
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trl.experimental.orpo import ORPOConfig

from ray_jobs.orpo.evaluation import PairScores, score_pairs
from ray_jobs.orpo.flops import FlopCount
from ray_jobs.orpo.loss import log_odds_ratio, orpo_loss
from ray_jobs.orpo.meter import BatchFigures, TrainMeter
from ray_jobs.orpo.packing import PackedPairs, pack
from ray_jobs.orpo.plan import StepPlan, plan_steps
from ray_jobs.orpo.step import PairLogps
from ray_jobs.orpo.trainer import Job, TrlTrainer


class PackedTrainer(TrlTrainer):
    """One optimiser step over the step's pairs, each token and each pair of all workers weighing the same.

    TRL averages micro batches, whose tokens weigh more where a batch is short; here the loss of a
    step does not depend on how its pairs are grouped or shared out, and equals TRL's where TRL
    computes the same pairs as one batch.
    """

    def __init__(
        self, model: nn.Module, args: ORPOConfig, job: Job, meter: TrainMeter, flops: FlopCount
    ) -> None:
        super().__init__(model, args, job, meter)
        self.flops = flops
        self.plans = plan_steps(
            job.train_pairs, job.settings, rank=args.process_index, num_workers=args.world_size
        )
        self._ready: tuple[StepPlan, list[PackedPairs]] | None = None
        # walking through a thousand modules costs milliseconds, in which a GPU idles: not at every step
        self._trains = False
        if not self.is_deepspeed_enabled:
            model.zero_grad = self._zero_grad

    def _zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.trained_parameters:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @cached_property
    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_(self.trained_parameters, self.args.max_grad_norm)

    def get_train_dataloader(self) -> DataLoader[dict[str, StepPlan]]:
        steps = [{"plan": plan} for plan in self.plans]
        return DataLoader(steps, batch_size=1, shuffle=False, collate_fn=lambda batch: batch[0])

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        del num_items_in_batch
        if not self._trains:
            model.train()
            self._trains = True
        plan: StepPlan = inputs["plan"]
        sums = torch.zeros(6, dtype=torch.float64, device=self.args.device)
        flops = 0.0
        rows = self._ready[1] if self._ready and self._ready[0] is plan else self._pack(plan)
        for number, packed in enumerate(rows, start=1):
            sums += self._forward_backward(model, packed, plan, is_last=number == len(plan.rows))
            flops += self.flops.of_rows(packed.spans, len(packed.label_N))
        following = self.state.global_step + 1
        if following < len(self.plans):  # while the device computes
            self._ready = self.plans[following], self._pack(self.plans[following])
        values = self.summed_over_workers([*sums.tolist(), flops])
        self._record_step(values, plan)
        return torch.tensor(values[0], dtype=torch.float32, device=self.args.device)

    def _pack(self, plan: StepPlan) -> list[PackedPairs]:
        pairs, learns_prompts = self.job.train_pairs, self.settings.learns_prompts
        return [
            pack([pairs[index] for index in row], self.args.device, learns_prompts=learns_prompts)
            for row in plan.rows
        ]

    def _forward_backward(
        self, model: nn.Module, packed: PackedPairs, plan: StepPlan, *, is_last: bool
    ) -> Tensor:
        """Backward pass of a row's part of the step's loss; returns the row's parts of the figures."""
        # gradients are averaged over the workers, the loss is a sum over them
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        deferred = not is_last and not self.is_deepspeed_enabled
        options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        with self.accelerator.no_sync(model) if deferred else nullcontext():
            with self.compute_loss_context_manager():
                logps = model(packed=packed)
            loss = step_share(logps, plan, self.settings.beta)
            self.accelerator.backward(loss * self.args.world_size, **options)
        return _figures(loss, logps, packed)

    def _record_step(self, values: list[float], plan: StepPlan) -> None:
        loss, nll_sum, accuracy_sum, margin_sum, log_odds_sum, num_tokens, flops = values
        pairs = plan.total_pairs
        figures = BatchFigures(
            share=1.0,
            loss=loss,
            nll=nll_sum / plan.total_nll_tokens,
            accuracy=accuracy_sum / pairs,
            margin=margin_sum / pairs,
            log_odds=log_odds_sum / pairs,
            num_tokens=int(num_tokens),
            num_computed=int(num_tokens),
            num_padding=0,
            flops=flops,
        )
        self.record(figures)

    def scores(self, model: nn.Module) -> PairScores:
        self._trains = False
        return score_pairs(
            model,
            self.job.heldout_pairs,
            max_batch_tokens=self.settings.max_batch_tokens,
            device=self.args.device,
            rank=self.args.process_index,
            num_workers=self.args.world_size,
            learns_prompts=self.settings.learns_prompts,
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        return math.fsum(
            self.flops.of_rows(pack([self.job.train_pairs[i] for i in row]).spans, 0)
            for row in inputs["plan"].rows
        )


def step_share(logps: PairLogps, plan: StepPlan, beta: float) -> Tensor:
    """A row's part of the loss of a whole step; the parts of all rows add up to it."""
    part = len(logps.chosen_B) / plan.total_pairs
    nll = logps.nll_sum_B.sum() / plan.total_nll_tokens
    return orpo_loss(logps.chosen_B, logps.rejected_B, nll / part, beta=beta).loss * part


def _figures(loss: Tensor, logps: PairLogps, packed: PackedPairs) -> Tensor:
    chosen_B, rejected_B = logps.chosen_B.detach(), logps.rejected_B.detach()
    sums = [
        loss.detach(),
        logps.nll_sum_B.detach().sum(),
        (chosen_B > rejected_B).sum(),
        (chosen_B - rejected_B).sum(),
        log_odds_ratio(chosen_B, rejected_B).sum(),
        torch.tensor(packed.num_unshared_tokens, device=loss.device),
    ]
    return torch.stack([value.double() for value in sums])
