"""The optimiser of a training that goes on with other settings than those of its checkpoint."""

from typing import Any

from ray_jobs.orpo.settings import TrainingSettings


def put_settings(optimizer: Any, lr_scheduler: Any, settings: TrainingSettings) -> None:
    """Learning rate and weight decay of `settings`, after a checkpoint's own were loaded.

    `lr_scheduler` is a LambdaLR; the rate stays at the place in the schedule that was reached.
    """
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)  # out of accelerate's wrapper
    schedule.base_lrs = [settings.learning_rate] * len(schedule.base_lrs)
    rates = [settings.learning_rate * shape(schedule.last_epoch) for shape in schedule.lr_lambdas]
    schedule._last_lr = rates
    # the second group holds biases and norms, which do not decay
    decays = [settings.weight_decay, *[0.0] * (len(rates) - 1)]
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group |= {"initial_lr": settings.learning_rate, "lr": rate, "weight_decay": decay}
