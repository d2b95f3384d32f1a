"""Scores of the models' answers, and of pairs whose better answer is known."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray_jobs.config import Config, EngineActors
from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.judging.metrics import metric_sha256, outline_of, wants_reference
from ray_jobs.records import Judgement, Pair
from ray_jobs.runs import RunFolder, file_sha256
from ray_jobs.stages import cluster, generate
from ray_jobs.stages.base import Stage, config_inputs, flatten
from ray_jobs.stages.begun import begin_rows, begun_rows, forget_ahead
from ray_jobs.stages.blocks import Range
from ray_jobs.stages.engine_rows import RowJob, compute_tables
from ray_jobs.stages.judge_actor import (
    ITEM_COLUMNS,
    RESULT_COLUMNS,
    JudgeActor,
    metrics_of,
    quarantined,
    why_unjudged,
)
from ray_jobs.stages.judge_rows import (
    BASE_ROWS,
    FirstLook,
    check,
    first_look,
    look_order,
    look_sizes,
    parts_of,
    row_tables,
)
from ray_jobs.stages.known_pairs import known_pairs, trust_rows
from ray_jobs.stages.micro_batches import begin, begun_batches, name_of
from ray_jobs.tables import iter_rows, iter_tables, write_tables
from serving.storage.mirror import discard
from serving.storage.remote import local_path

log = logging.getLogger(__name__)

ON_GPUS = ("vllm", "hf")
"""Backends that take a GPU where there is one."""
JUDGEMENTS = "judgements/{subject}/part-00000.parquet"


def run(config: Config, folder: RunFolder) -> list[str]:
    """Judges known pairs and all answers; with several looks, only until one of them decides."""
    check(config, lambda: generate.iter_prompts(folder))
    order = look_order((prompt.id for prompt in generate.iter_prompts(folder)), config.seed)
    pairs, references = known_pairs(config, folder)
    cluster.connect()
    unfinished = folder.path("judgements/unfinished")
    job, pool = judge_job(config, folder), judge_pool(config)
    sizes = look_sizes(config.verdict.sequential.looks, len(order))
    judged: list[Path] = []
    for look, (start, size) in enumerate(pairwise((0, *sizes))):
        ids = frozenset(order[start:size])
        if look == 0:
            first = FirstLook(ids, trust_rows(config, pairs, references), len(order))
            parts = parts_of(first, folder, begun_by_now(config, folder))
            judged += [compute_tables(job, rows, path, pool) for path, rows in parts]
        else:
            rows = row_tables(folder, ids, generate.models_of(folder), [])
            judged.append(compute_tables(job, rows, unfinished / f"look-{look}", pool))
        write_judgements(folder, judged)
        folder.write_json("judgements/trust.json", trust(config, folder, pairs, references))
        folder.write_json("judgements/look.json", {"look": look, "of": len(sizes), "num_prompts": size})
        if look + 1 < len(sizes) and decided(config, folder):
            log.info("judge    look %d of %d decides: the other answers stay unjudged", look + 1, len(sizes))
            break
    outputs = [*judgement_files(folder), "judgements/trust.json", "judgements/look.json"]
    folder.publish(outputs)
    discard(unfinished)
    forget_ahead(folder)
    return outputs


def base_ahead(config: Config, folder: RunFolder, made: RunFolder) -> None:
    """Judges what the first look takes of the base's answers, and known pairs, before the stage's turn.

    `made`: where the base's model and answers are: the run's folder, or that of its work ahead.
    """
    look = first_look(config, folder)
    begun = begin_rows(folder, "judgements", ahead_inputs(config, made))
    rows = row_tables(folder, look.ids, ("base",), look.known, answers_in=made)
    compute_tables(judge_job(config, made), rows, begun / BASE_ROWS, judge_pool(config))


def begun_by_now(config: Config, folder: RunFolder) -> Path | None:
    """The folder of judgements of the run's answers that were begun before the stage's turn."""
    return begun_rows(folder, "judgements", ahead_inputs(config, folder))


def batches_of(config: Config, folder: RunFolder) -> list[Range]:
    """The micro-batches of the run's answers that were begun, in order."""
    return begun_batches(begun_by_now(config, folder))


def begin_batch(config: Config, folder: RunFolder, batch: Range) -> None:
    """Notes that somebody judges these prompts' answers, and nobody else is to."""
    begin(folder, begin_rows(folder, "judgements", ahead_inputs(config, folder)), batch)


def batch_ahead(look: FirstLook, config: Config, folder: RunFolder, batch: Range) -> None:
    """Judges a micro-batch that was begun, before the stage's turn."""
    name = name_of(batch)
    for path, rows in parts_of(look, folder, begun_by_now(config, folder)):
        if path.name == name:
            compute_tables(judge_job(config, folder), rows, path, judge_pool(config))


def ahead_inputs(config: Config, models: RunFolder) -> dict[str, str]:
    """What the scores of given rows follow from; the judge may be the run's own base."""
    own = models.path("models/base/manifest.json")
    return config_inputs(STAGE, config) | ({"run:base": file_sha256(own)} if own.is_file() else {})


def decided(config: Config, folder: RunFolder) -> bool:
    from ray_jobs.stages.verdict import decided_early

    return decided_early(config, folder)


def subjects(folder: RunFolder) -> tuple[str, ...]:
    """Whose answers are judged: the models', those of known pairs, and some of these again."""
    return (*generate.models_of(folder), "trust", "repeat")


def judgement_files(folder: RunFolder) -> tuple[str, ...]:
    return tuple(JUDGEMENTS.format(subject=subject) for subject in subjects(folder))


def write_judgements(folder: RunFolder, judged: Sequence[Path]) -> None:
    """Each subject's judgements, of all files of results, into a file of its own."""
    for subject, output in zip(subjects(folder), judgement_files(folder), strict=True):
        write_tables(folder.path(output), judgements_in(judged, subject), Judgement.COLUMNS)


def judgements_in(judged: Sequence[Path], subject: str) -> Iterator[Any]:
    import pyarrow.compute as pc

    for path in judged:
        for table in iter_tables(path):
            yield table.filter(pc.field("subject") == subject).select(list(Judgement.COLUMNS))


def judge_job(config: Config, folder: RunFolder) -> RowJob:
    pool = judge_pool(config)
    outlines = map(outline_of, config.judge.metrics)
    metrics = {metric.key: wants_reference(metric, config.judge.inputs) for metric in outlines}
    return RowJob(
        stage="judge",
        what="judgements",
        actor=JudgeActor,
        spec={
            "judge": config.judge.model_dump_json(),
            "engine": pool.settings.model_dump_json(),
            "own_models": {"run:base": folder.shared("models/base/model.gguf")},
            "seed": config.seed,
            "gpus": judge_gpus(config),
        },
        gpus=judge_gpus(config),
        columns_in=ITEM_COLUMNS,
        columns_out=RESULT_COLUMNS,
        key=("subject", "id", "metric"),
        keys_of=lambda row: [(row["subject"], row["id"], metric) for metric in metrics_of(row, metrics)],
        failed=partial(quarantined, metrics=metrics),
        why=why_unjudged,
    )


def judge_gpus(config: Config) -> float:
    """GPUs for each judge; asks the cluster where the config leaves it open."""
    settings = config.judge
    if settings.gpus != "auto":
        return settings.gpus
    if settings.backend not in ON_GPUS:
        return 0.0
    cluster.connect()
    return 1.0 if cluster.trial_capacity("GPU") else 0.0


def judge_pool(config: Config) -> EngineActors:
    """The engines of the config with the judge's own context, and a cache that suits long prompts.

    A judge reads hundreds of tokens for each that it writes, and these are read fastest with a cache in f16,
    see `EngineSettings.flash_attention`.
    """
    settings = config.engine.settings
    changes: dict[str, Any] = {"context_tokens": config.judge.context_tokens}
    if settings.kv_type == "auto":
        changes["kv_type"] = "f16"
    return config.engine.model_copy(update={"settings": settings.model_copy(update=changes)})


def trust(
    config: Config, folder: RunFolder, pairs: Sequence[Pair], references: Mapping[str, str] | None
) -> dict[str, Any]:
    """How far the judge is to be trusted by each metric, as JSON; the first metric's stands on top."""
    from ray_jobs.judging.trust import judge_trust

    judged = {subject: list(iter_judgements(folder, subject)) for subject in ("trust", "repeat")}
    by_metric = {}
    for metric in map(outline_of, config.judge.metrics):
        key = metric.key
        compared = references if wants_reference(metric, config.judge.inputs) else None
        rows, repeats = ([row for row in judged[name] if row.metric == key] for name in ("trust", "repeat"))
        found = judge_trust(pairs, rows, config.judge.trust, repeats=repeats, references=compared)
        by_metric[key] = dataclasses.asdict(found)
    return {**next(iter(by_metric.values())), "by_metric": by_metric}


def iter_judgements(folder: RunFolder, subject: str) -> Iterator[Judgement]:
    return map(Judgement.from_row, iter_rows(folder.path(JUDGEMENTS.format(subject=subject))))


def looks_depend_on(config: Config) -> dict[str, str]:
    """With several looks the decision rule says which answers are judged at all."""
    if len(config.verdict.sequential.looks) == 1:
        return {}
    return flatten("verdict", config.verdict.model_dump(mode="json"))


def judged_by(config: Config) -> dict[str, str]:
    """The metrics' text and the judge's files on this machine, so that a changed one is noticed."""
    from ray_jobs.export.base import default_cache_dir, resolve_gguf
    from ray_jobs.export.hashes import remembered_sha256
    from ray_jobs.judging.adapter import adapter_path
    from ray_jobs.judging.models import local_judge_sha256

    settings, found = config.judge, {}
    for metric in settings.metrics:
        with suppress(ConfigError):  # named where it is needed
            found[f"judge.metrics: {metric}"] = metric_sha256(metric)
    is_here = settings.model.startswith("bundled:") or local_path(settings.model).is_file()
    with suppress(ModelError):
        if settings.adapter:
            adapter = adapter_path(settings.adapter)
            found["judge.adapter: file"] = remembered_sha256(adapter, default_cache_dir())
        if settings.backend == "engine" and is_here:
            model = resolve_gguf(settings.model, None, default_cache_dir())
            found["judge.model: file"] = remembered_sha256(model, default_cache_dir())
        elif settings.backend != "engine" and (sha256 := local_judge_sha256(settings)):
            found["judge.model: file"] = sha256
    return found


STAGE = Stage(
    name="judge",
    settings=(
        "seed",
        "judge",
        "engine.settings.backend",
        "engine.settings.kv_type",
        "engine.settings.deterministic",
    ),
    needs=("data/prompts.parquet", "data/trust.parquet"),
    folders=("judgements",),
    run=run,
    extra_inputs=lambda config: looks_depend_on(config) | judged_by(config),
    more_needs=generate.answer_files,
    free=(
        "judge.gpus",
        "judge.timeout_s",
        "judge.openai.api_key_env",
        "judge.openai.max_concurrent_requests",
        "judge.openai.max_retries",
    ),
)
