"""What a config would do, told without a cluster and without loading anything heavy."""

import math
from collections.abc import Iterator
from statistics import NormalDist

from ray_jobs.config import Config
from ray_jobs.data.forecast import num_answering, num_judged, num_known
from ray_jobs.export.recipe import with_recipe
from ray_jobs.orpo.memory import GIB, training_memory, trials_per_gpu
from ray_jobs.orpo.shapes import known_shape
from ray_jobs.search.trials import largest_trial, most_pairs_per_step, most_steps, num_drawn


def plan_lines(config: Config) -> list[str]:
    """The resolved plan, a line a subject.

    Raises UserError for files that are not there, and for small local data sets that would not do.
    """
    from ray_jobs.data.split import plan
    from ray_jobs.preview import check_named_files, data_lines

    check_named_files(config)
    number, models = config.data.num_prompts, num_answering(config)
    lines = [
        ("run", f"{config.name}, seed {config.seed}, kept in {config.storage}/{config.name}"),
        ("model", _model(config)),
        *(("data", line) for line in (*_data(plan(config.data)), *data_lines(config))),
        ("tune", _trials(config)),
        *(("memory", line) for line in _gpu_memory(config)),
        *(("search", line) for line in _space(config)),
        ("training", _training(config)),
        ("export", f"base and candidate as {_recipe(config)} GGUF by one recipe"),
        ("generate", generation_line(config, number, models)),
        ("judge", judging_line(config, number, models, num_known(config))),
        ("verdict", power_line(config, number)),
        ("promote", f"the winner into {config.registry}"),
    ]
    return [f"{subject:<9} {text}" for subject, text in lines]


def _recipe(config: Config) -> str:
    engine = config.engine.settings
    chosen = with_recipe(config.export, engine.calibration, engine.backend)
    pure = " (embedding too)" if chosen.pure else ""
    return f"{chosen.quantization}{pure}{', as calibrated' if config.export.quantization == 'auto' else ''}"


def _model(config: Config) -> str:
    from ray_jobs.export.base import check_named

    model = config.model
    check_named(model.base)
    revision = f" at {model.revision}" if model.revision else ""
    template = f", template {model.gguf}" if model.gguf else ""
    return f"{model.base}{revision}{template}"


def _data(plan: dict[str, object]) -> Iterator[str]:
    for name, text in plan.items():
        yield f"{name}: {text}"


def _trials(config: Config) -> str:
    search, workers = config.search, config.workers
    each = f"{workers.per_trial} worker(s) of {workers.cpus_per_worker:g} CPU"
    if isinstance(workers.gpus_per_worker, str):
        each += " and a share of a GPU"
    elif workers.gpus_per_worker:
        each += f" and {workers.gpus_per_worker:g} GPU"
    how = f"{search.algorithm} search, scheduler {search.scheduler}, best held-out {search.objective}"
    return f"{num_drawn(search)} trials of {each}; {how}"


def _gpu_memory(config: Config) -> Iterator[str]:
    """What a trial takes of a GPU, and how many trials share one."""
    workers = config.workers
    if not workers.gpus_per_worker:
        return
    shape = known_shape(config.model)
    if shape is None:
        yield "of a trial: known once the model is there"
        return
    memory = training_memory(shape, largest_trial(config.training, config.search), workers.per_trial)
    parts = ("weights", "trained", "activations", "logits")
    what = ", ".join(f"{name} {getattr(memory, name) / GIB:.1f}" for name in parts)
    yield f"of a GPU, estimated: {memory.total / GIB:.1f} GiB a worker ({what})"
    if workers.per_trial == 1:
        sizes = [workers.gpu_memory_gib] if workers.gpu_memory_gib else GPU_SIZES_GIB
        held = (f"{trials_per_gpu(memory.total, size * GIB)} on {size:g} GiB" for size in sizes)
        yield f"trials that fit on a GPU together: {', '.join(held)}"


GPU_SIZES_GIB = (16.0, 24.0, 48.0, 80.0)


def _space(config: Config) -> Iterator[str]:
    for name, dimension in config.search.space.items():
        yield f"{name}: {dimension.kind} {', '.join(str(value) for value in dimension.values)}"


def _training(config: Config) -> str:
    training, search = config.training, config.search
    steps, pairs = most_steps(training, search), most_pairs_per_step(training, search)
    up_to = "up to " * bool({"num_steps", "pairs_per_step"} & search.space.keys())
    return (
        f"{up_to}{steps} steps of {pairs} pairs ({steps * pairs} in all) a trial, "
        f"pairs up to {training.max_pair_tokens} tokens, step {training.step}"
    )


def generation_line(config: Config, num_prompts: int, num_models: int) -> str:
    engines = config.engine
    number = engines.actors or "as many engines as fit"
    return (
        f"{num_models} x {num_prompts} answers of up to {config.generation.max_answer_tokens} tokens by "
        f"{number} ({engines.settings.cores} core(s) each, {engines.settings.backend})"
    )


def judging_line(config: Config, num_prompts: int, num_models: int, num_pairs: int) -> str:
    answers = num_judged(config, num_prompts, num_models, num_pairs)
    return f"{answers} answers x {', '.join(config.judge.metrics)} by {config.judge.model}"


def power_line(config: Config, number: int) -> str:
    """What the number of prompts can show, by the normal approximation of a paired test.

    With several metrics or candidates at the level that the least of Holm's p-values must reach.
    """
    verdict = config.verdict
    if number < 2:
        return f"{number} prompt(s) are too few to show any difference"
    normal = NormalDist()
    num_tests = verdict.num_candidates * len(verdict.metrics or config.judge.metrics)
    tail = (1 - verdict.level) / 2 / num_tests
    quantiles = normal.inv_cdf(1 - tail) + normal.inv_cdf(verdict.power)
    least = verdict.min_gain + quantiles * verdict.expected_sd / math.sqrt(number)
    text = (
        f"{number} prompts show a score difference of about {least:.2g} with {verdict.power:.0%} power, "
        f"if paired differences have a standard deviation of {verdict.expected_sd:g}"
        f"{' and every cluster has one prompt' * (verdict.cluster_by != 'none')}"
    )
    if verdict.wished_gain is None:
        return text
    above = verdict.wished_gain - verdict.min_gain
    needed = math.ceil((quantiles * verdict.expected_sd / above) ** 2)
    return f"{text}; a gain of {verdict.wished_gain:g} takes about {needed} prompts"
