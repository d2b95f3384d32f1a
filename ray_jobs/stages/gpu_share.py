"""How many trials share a GPU where the config leaves it to their memory (`gpus_per_worker: auto`)."""

import logging
import math

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
        share = 1.0 if config.workers.per_trial > 1 else share_of_gpu(config, gpu_bytes(config))
    log.info("tune     a worker takes %g GPU", share)
    workers = config.workers.model_copy(update={"gpus_per_worker": share})
    return config.model_copy(update={"workers": workers})


def share_of_gpu(config: Config, memory: float) -> float:
    """What a trial of one worker takes of a GPU with so many bytes, in Ray's steps of 1/10,000."""
    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.families import full_config
    from ray_jobs.orpo.memory import shape_of

    shape = shape_of(full_config(resolve_base(config.model, default_cache_dir()).hf_dir))
    needed = training_memory(shape, largest_trial(config.training, config.search)).total
    held = trials_per_gpu(needed, memory)
    if held == 0:
        raise ConfigError(
            f"workers.gpus_per_worker: a trial takes about {needed / GIB:.1f} GiB, a GPU has "
            f"{memory / GIB:.1f}; lower training.max_batch_tokens, or give a number if that is too high"
        )
    return math.floor(10_000 / held) / 10_000


def gpu_bytes(config: Config) -> float:
    """Memory of a GPU: as the config says, else as one of the cluster's does (waits for a node to come)."""
    if config.workers.gpu_memory_gib:
        return config.workers.gpu_memory_gib * GIB
    import ray

    found: float = ray.get(ray.remote(num_cpus=0, num_gpus=0.001)(_own_gpu_bytes).remote())
    return found


def _own_gpu_bytes() -> float:
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory)
