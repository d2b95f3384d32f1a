"""Scores of the models' answers, and of pairs whose better answer is known."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from ray_jobs.config import Config, EngineActors
from ray_jobs.errors import ConfigError
from ray_jobs.judging.metrics import outline_of
from ray_jobs.records import Judgement, Pair, Prompt, as_row, pair_from_row, row_seed
from ray_jobs.runs import RunFolder, file_sha256
from ray_jobs.stages import cluster, generate
from ray_jobs.stages.base import Stage, config_inputs, flatten
from ray_jobs.stages.begun import ahead_of, begin_rows, begun_rows, forget_ahead
from ray_jobs.stages.engine_rows import RowJob, compute_rows
from ray_jobs.stages.judge_actor import ITEM_COLUMNS, RESULT_COLUMNS, JudgeActor, quarantined
from ray_jobs.tables import iter_rows, read_rows, write_rows
from serving.storage.mirror import discard

log = logging.getLogger(__name__)

JUDGEMENTS = "judgements/{subject}/part-00000.parquet"
AHEAD_SUBJECTS = ("base", "trust", "repeat")
"""Whose answers do not depend on the trials, and may be judged before these are done."""


def run(config: Config, folder: RunFolder) -> list[str]:
    """Judges known pairs and all answers; with several looks, only until one of them decides."""
    prompts = look_order(generate.read_prompts(folder), config.seed)
    check(config, prompts)
    pairs, references = known_pairs(config, folder)
    known = trust_rows(config, pairs, references)
    cluster.connect()
    unfinished = folder.path("judgements/unfinished")
    begun = begun_rows(folder, "judgements", ahead_inputs(config, folder))
    job = judge_job(config, folder)
    sizes = look_sizes(config.verdict.sequential.looks, len(prompts))
    results: list[dict[str, Any]] = []
    for look, (start, size) in enumerate(pairwise((0, *sizes))):
        rows = answer_rows(folder, prompts[start:size], generate.models_of(folder))
        rows += known if look == 0 else []
        if begun and look == 0:
            ahead = [row for row in rows if row["subject"] in AHEAD_SUBJECTS]
            results += compute_rows(job, ahead, begun / "rows", judge_pool(config))
            rows = [row for row in rows if row["subject"] not in AHEAD_SUBJECTS]
        results += compute_rows(job, rows, unfinished / f"look-{look}", judge_pool(config))
        write_judgements(folder, results)
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


def base_ahead(config: Config, folder: RunFolder) -> None:
    """Judges what the first look takes of the base's answers, which were made ahead, and known pairs."""
    inner = ahead_of(folder)
    prompts = look_order(generate.read_prompts(folder), config.seed)
    check(config, prompts)
    size = look_sizes(config.verdict.sequential.looks, len(prompts))[0]
    rows = answer_rows(inner, prompts[:size], ("base",)) + trust_rows(config, *known_pairs(config, folder))
    begun = begin_rows(folder, "judgements", ahead_inputs(config, inner))
    compute_rows(judge_job(config, inner), rows, begun / "rows", judge_pool(config))


def ahead_inputs(config: Config, models: RunFolder) -> dict[str, str]:
    """What the scores of given rows follow from; the judge may be the run's own base."""
    own = models.path("models/base/manifest.json")
    return config_inputs(STAGE, config) | ({"run:base": file_sha256(own)} if own.is_file() else {})


def known_pairs(config: Config, folder: RunFolder) -> tuple[list[Pair], dict[str, str] | None]:
    """The pairs whose better answer is known, with their references, where a metric wants one."""
    pairs = [pair_from_row(row) for row in read_rows(folder.path("data/trust.parquet"))]
    pairs = pairs[: config.judge.trust.num_pairs]
    return pairs, trust_references(config, pairs)


def check(config: Config, prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError for metrics of one name, DataError for a row that lacks what a metric needs."""
    from ray_jobs.judging.metrics import check_inputs

    metrics = [outline_of(metric) for metric in config.judge.metrics]
    keys = [metric.key for metric in metrics]
    for path, metric in zip(config.judge.metrics, metrics, strict=True):
        if keys.count(metric.key) > 1:
            raise ConfigError(f"judge.metrics: {path}: another metric has the name {metric.key!r} too")
        check_inputs(metric, prompts, config.judge.inputs)


def look_order(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """By chance, so that an early look sees a fair part of the prompts."""
    return sorted(prompts, key=lambda prompt: (row_seed(seed, prompt.id), prompt.id))


def look_sizes(shares: Iterable[float], num_prompts: int) -> list[int]:
    """Prompts judged by the end of each look."""
    return [max(1, round(share * num_prompts)) for share in shares]


def decided(config: Config, folder: RunFolder) -> bool:
    from ray_jobs.stages.verdict import decided_early

    return decided_early(config, folder)


def subjects(folder: RunFolder) -> tuple[str, ...]:
    """Whose answers are judged: the models', those of known pairs, and some of these again."""
    return (*generate.models_of(folder), "trust", "repeat")


def judgement_files(folder: RunFolder) -> tuple[str, ...]:
    return tuple(JUDGEMENTS.format(subject=subject) for subject in subjects(folder))


def write_judgements(folder: RunFolder, results: Sequence[Mapping[str, Any]]) -> None:
    for subject, output in zip(subjects(folder), judgement_files(folder), strict=True):
        rows = [row for row in results if row["subject"] == subject]
        write_rows(folder.path(output), rows, Judgement.COLUMNS)


def judge_job(config: Config, folder: RunFolder) -> RowJob:
    pool = judge_pool(config)
    metrics = [outline_of(metric).key for metric in config.judge.metrics]
    return RowJob(
        stage="judge",
        what="judgements",
        actor=JudgeActor,
        spec={
            "judge": config.judge.model_dump_json(),
            "engine": pool.settings.model_dump_json(),
            "own_models": {"run:base": folder.shared("models/base/model.gguf")},
            "seed": config.seed,
        },
        columns_in=ITEM_COLUMNS,
        columns_out=RESULT_COLUMNS,
        key=("subject", "id", "metric"),
        keys_of=lambda row: [(row["subject"], row["id"], metric) for metric in metrics],
        failed=partial(quarantined, metrics=metrics),
    )


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


def answer_rows(folder: RunFolder, prompts: Iterable[Prompt], models: Sequence[str]) -> list[dict[str, Any]]:
    """The models' answers as rows to judge; those to one prompt stand together, to share its prefix."""
    answers = {
        model: {answer.id: answer for answer in generate.answers_of(folder, model)} for model in models
    }
    return [
        {"subject": model, **as_row(prompt), "answer": by_id[prompt.id].answer}
        for prompt in prompts
        for model, by_id in answers.items()
    ]


def trust_references(config: Config, pairs: Sequence[Pair]) -> dict[str, str] | None:
    """References of the known pairs, where a metric wants one; else None."""
    from ray_jobs.judging import trust as known
    from ray_jobs.judging.metrics import input_parts

    wanted = any(
        "reference" in input_parts(outline_of(metric), config.judge.inputs).values()
        for metric in config.judge.metrics
    )
    return known.trust_references(pairs, config.judge.trust.reference) if wanted else None


def trust_rows(
    config: Config, pairs: Sequence[Pair], references: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    """Both answers of each known pair, and those of the first pairs once more."""
    from ray_jobs.judging.trust import repeated_items, trust_items

    items = trust_items(pairs, references)
    repeats = repeated_items(items, config.judge.trust.num_repeats)
    return [
        {"subject": subject, **as_row(item.prompt), "id": item.id, "answer": item.answer}
        for subject, chosen in (("trust", items), ("repeat", repeats))
        for item in chosen
    ]


def trust(
    config: Config, folder: RunFolder, pairs: Sequence[Pair], references: Mapping[str, str] | None
) -> dict[str, Any]:
    """How far the judge is to be trusted by each metric, as JSON; the first metric's stands on top."""
    from ray_jobs.judging.trust import judge_trust

    judged = {subject: judgements_of(folder, subject) for subject in ("trust", "repeat")}
    by_metric = {}
    for metric in config.judge.metrics:
        key = outline_of(metric).key
        rows, repeats = ([row for row in judged[name] if row.metric == key] for name in ("trust", "repeat"))
        found = judge_trust(pairs, rows, config.judge.trust, repeats=repeats, references=references)
        by_metric[key] = dataclasses.asdict(found)
    return {**next(iter(by_metric.values())), "by_metric": by_metric}


def judgements_of(folder: RunFolder, subject: str) -> list[Judgement]:
    return [Judgement.from_row(row) for row in iter_rows(folder.path(JUDGEMENTS.format(subject=subject)))]


def looks_depend_on(config: Config) -> dict[str, str]:
    """With several looks the decision rule says which answers are judged at all."""
    if len(config.verdict.sequential.looks) == 1:
        return {}
    return flatten("verdict", config.verdict.model_dump(mode="json"))


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
    extra_inputs=looks_depend_on,
    more_needs=generate.answer_files,
)
