"""How many trials share a GPU where the config leaves it to their memory (`gpus_per_worker: auto`)."""

import logging
import math
from dataclasses import dataclass

from ray_jobs.config import Config
from ray_jobs.errors import ConfigError
from ray_jobs.orpo.memory import GIB, training_memory, trials_per_gpu
from ray_jobs.search.trials import largest_trial
from ray_jobs.stages import cluster

log = logging.getLogger(__name__)


def with_gpu_share(config: Config) -> Config:
    """The config with a number instead of `auto`; asks the cluster.

    Raises ConfigError when not even one trial fits.
    """
    if config.workers.gpus_per_worker != "auto":
        return config
    share = 0.0
    if cluster.trial_capacity("GPU"):
        share = 1.0 if config.workers.per_trial > 1 else share_of_gpu(config, gpu_of(config))
    log.info("tune     a worker takes %g GPU", share)
    workers = config.workers.model_copy(update={"gpus_per_worker": share})
    return config.model_copy(update={"workers": workers})


@dataclass(frozen=True)
class Gpu:
    """Bytes of its memory, and whether it multiplies bf16 natively; where not, trials are in float32."""

    memory: float
    bf16: bool = True


def share_of_gpu(config: Config, gpu: Gpu) -> float:
    """What a trial of one worker takes of a GPU, in Ray's steps of 1/10,000."""
    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.families import full_config
    from ray_jobs.orpo.memory import shape_of

    shape = shape_of(full_config(resolve_base(config.model, default_cache_dir()).hf_dir))
    training = config.training
    if training.precision == "auto" and not gpu.bf16:
        training = training.model_copy(update={"precision": "fp32"})
    needed = training_memory(shape, largest_trial(training, config.search)).total
    held = trials_per_gpu(needed, gpu.memory)
    if held == 0:
        raise ConfigError(
            f"workers.gpus_per_worker: a trial takes about {needed / GIB:.1f} GiB, a GPU has "
            f"{gpu.memory / GIB:.1f}; lower training.max_batch_tokens, or give a number if that is too high"
        )
    return math.floor(10_000 / held) / 10_000


def gpu_of(config: Config) -> Gpu:
    """A GPU: as the config says, else as one of the cluster's is (waits for a node to come)."""
    if config.workers.gpu_memory_gib:
        return Gpu(config.workers.gpu_memory_gib * GIB)
    import ray

    found: Gpu = ray.get(ray.remote(num_cpus=0, num_gpus=0.001)(_own_gpu).remote())
    return found


def _own_gpu() -> Gpu:
    import torch

    from ray_jobs.orpo.models import multiplies_bf16

    device = torch.device("cuda", 0)
    return Gpu(float(torch.cuda.get_device_properties(device).total_memory), multiplies_bf16(device))
