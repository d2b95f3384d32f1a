"""Scores of the models' answers, and of pairs whose better answer is known."""

import dataclasses
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.config import Config, EngineActors
from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.judging.metrics import check_inputs, metric_sha256, outline_of, outlines_of, wants_reference
from ray_jobs.records import Judgement, Pair, Prompt, as_row, pair_from_row, row_seed
from ray_jobs.runs import RunFolder, file_sha256
from ray_jobs.stages import cluster, generate
from ray_jobs.stages.base import Stage, config_inputs, flatten
from ray_jobs.stages.begun import begin_rows, begun_rows, forget_ahead
from ray_jobs.stages.engine_rows import RowJob, compute_tables
from ray_jobs.stages.judge_actor import ITEM_COLUMNS, RESULT_COLUMNS, JudgeActor, metrics_of, quarantined
from ray_jobs.tables import ROWS_PER_GROUP, iter_rows, iter_tables, read_rows, table_of, write_tables
from serving.storage.mirror import discard
from serving.storage.remote import local_path

if TYPE_CHECKING:
    from ray_jobs.judging.inputs import JudgeItem

log = logging.getLogger(__name__)

JUDGEMENTS = "judgements/{subject}/part-00000.parquet"


def run(config: Config, folder: RunFolder) -> list[str]:
    """Judges known pairs and all answers; with several looks, only until one of them decides."""
    check(config, lambda: generate.iter_prompts(folder))
    order = look_order((prompt.id for prompt in generate.iter_prompts(folder)), config.seed)
    pairs, references = known_pairs(config, folder)
    known = trust_rows(config, pairs, references)
    cluster.connect()
    unfinished = folder.path("judgements/unfinished")
    begun = begun_rows(folder, "judgements", ahead_inputs(config, folder))
    job, pool = judge_job(config, folder), judge_pool(config)
    sizes = look_sizes(config.verdict.sequential.looks, len(order))
    judged: list[Path] = []
    for look, (start, size) in enumerate(pairwise((0, *sizes))):
        models, ids = generate.models_of(folder), set(order[start:size])
        if begun and look == 0:
            ahead = row_tables(folder, ids, models[:1], known)
            judged.append(compute_tables(job, ahead, begun / "rows", pool))
            models, known = models[1:], []
        rows = row_tables(folder, ids, models, known)
        judged.append(compute_tables(job, rows, unfinished / f"look-{look}", pool))
        known = []
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
    check(config, lambda: generate.iter_prompts(folder))
    order = look_order((prompt.id for prompt in generate.iter_prompts(folder)), config.seed)
    ids = set(order[: look_sizes(config.verdict.sequential.looks, len(order))[0]])
    known = trust_rows(config, *known_pairs(config, folder))
    begun = begin_rows(folder, "judgements", ahead_inputs(config, made))
    rows = row_tables(folder, ids, ("base",), known, answers_in=made)
    compute_tables(judge_job(config, made), rows, begun / "rows", judge_pool(config))


def ahead_inputs(config: Config, models: RunFolder) -> dict[str, str]:
    """What the scores of given rows follow from; the judge may be the run's own base."""
    own = models.path("models/base/manifest.json")
    return config_inputs(STAGE, config) | ({"run:base": file_sha256(own)} if own.is_file() else {})


def known_pairs(config: Config, folder: RunFolder) -> tuple[list[Pair], dict[str, str] | None]:
    """The pairs whose better answer is known, with their references, where a metric wants one."""
    pairs = [pair_from_row(row) for row in read_rows(folder.path("data/trust.parquet"))]
    pairs = pairs[: config.judge.trust.num_pairs]
    return pairs, trust_references(config, pairs)


def check(config: Config, prompts: Callable[[], Iterable[Prompt]]) -> None:
    """Raises ConfigError for metrics of one name, DataError for a row that lacks what a metric needs."""
    for metric in outlines_of(config.judge.metrics):
        check_inputs(metric, prompts(), config.judge.inputs)


def look_order(ids: Iterable[str], seed: int) -> list[str]:
    """The prompts' IDs by chance, so that an early look sees a fair part of them."""
    return sorted(ids, key=lambda row_id: (row_seed(seed, row_id), row_id))


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
        },
        columns_in=ITEM_COLUMNS,
        columns_out=RESULT_COLUMNS,
        key=("subject", "id", "metric"),
        keys_of=lambda row: [(row["subject"], row["id"], metric) for metric in metrics_of(row, metrics)],
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


def row_tables(
    folder: RunFolder,
    ids: Container[str],
    models: Sequence[str],
    known: Sequence[Mapping[str, Any]],
    answers_in: RunFolder | None = None,
) -> Iterator[Any]:
    """Rows to judge: the models' answers to these prompts, then the known ones.

    Answers to one prompt stand together, to share its prefix.
    """
    rows = chain(
        (
            {"subject": model, **as_row(prompt), "answer": answer.answer}
            for prompt, answers in generate.in_step(folder, models, answers_in)
            if prompt.id in ids
            for model, answer in zip(models, answers, strict=True)
        ),
        known,
    )
    while some := list(islice(rows, ROWS_PER_GROUP)):
        yield table_of(some, ITEM_COLUMNS)


def trust_references(config: Config, pairs: Sequence[Pair]) -> dict[str, str] | None:
    """References of the known pairs, where a metric wants one; else None."""
    from ray_jobs.judging import trust as known

    wanted = any(wants_reference(outline_of(metric), config.judge.inputs) for metric in config.judge.metrics)
    return known.trust_references(pairs, config.judge.trust.reference) if wanted else None


def known_items(
    config: Config, pairs: Sequence[Pair], references: Mapping[str, str] | None
) -> list["JudgeItem"]:
    """Both answers of each known pair that some metric can judge."""
    from ray_jobs.judging.trust import trust_items

    every = all(wants_reference(outline_of(metric), config.judge.inputs) for metric in config.judge.metrics)
    return trust_items(pairs, references, keep_all=not every)


def trust_rows(
    config: Config, pairs: Sequence[Pair], references: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    """Both answers of each known pair, and those of the first once more: of all, and with a reference."""
    from ray_jobs.judging.trust import repeated_items

    items = known_items(config, pairs, references)
    compared = [item for item in items if item.prompt.reference is not None]
    again = {
        item.id
        for chosen in (items, compared)
        for item in repeated_items(chosen, config.judge.trust.num_repeats)
    }
    repeats = [item for item in items if item.id in again]
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
)
