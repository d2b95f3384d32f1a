"""Scores of both models' answers, and of pairs whose better answer is known."""

import dataclasses
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.config import Config, EngineActors
from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.judging.metrics import outline_of
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.records import Judgement, Message, Pair, Prompt, as_row, pair_from_row, text_sha256
from ray_jobs.runs import RunFolder
from ray_jobs.stages import cluster, generate
from ray_jobs.stages.base import Stage
from ray_jobs.stages.engine_rows import RowJob, compute_rows
from ray_jobs.tables import MESSAGES, read_rows, write_rows

log = logging.getLogger(__name__)

SUBJECTS = (*generate.MODELS, "trust", "repeat")
"""Whose answers are judged: both models', those of known pairs, and some of these again."""
JUDGEMENTS = "judgements/{subject}/part-00000.parquet"
ITEM_COLUMNS = {
    "subject": "string",
    "id": "string",
    "source": "string",
    "messages": MESSAGES,
    "reference": "string",
    "answer": "string",
}
RESULT_COLUMNS = {"subject": "string", **Judgement.COLUMNS}


class JudgeActor:
    """A judge model that scores blocks of answers by every metric of the config."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._settings = JudgeSettings.model_validate_json(spec["judge"])
        self._seed = spec["seed"]
        self._backend = open_backend(self._settings, spec)

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        from ray_jobs.tables import schema

        rows = table.to_pylist()
        results = [
            {"subject": row["subject"], **as_row(judgement)}
            for metric in self._settings.metrics
            for row, judgement in zip(rows, self._judge(metric, rows), strict=True)
        ]
        return pa.Table.from_pylist(results, schema=schema(RESULT_COLUMNS))

    def _judge(self, metric: str, rows: Sequence[Mapping[str, Any]]) -> list[Judgement]:
        """One judgement a row, in order. Rows without an answer get `no_answer`; repeats another seed."""
        found: dict[str, Judgement] = {}
        for again in (False, True):
            items = [
                item_of(row)
                for row in rows
                if (row["subject"] == "repeat") == again and row["answer"] is not None
            ]
            for judgement in self._ask(metric, items, self._seed + again):
                found[judgement.id] = judgement
        return [
            dataclasses.replace(found[key], id=row["id"])
            if (key := item_id(row)) in found
            else self._no_answer(metric, row)
            for row in rows
        ]

    def _ask(self, metric: str, items: list[JudgeItem], seed: int) -> list[Judgement]:
        from ray_jobs.judging.cache import JudgementCache, default_cache_path
        from ray_jobs.judging.judge import Judge

        if not items:
            return []
        if not self._settings.cache:
            return Judge(self._backend, self._settings, metric, seed=seed).judge(items)
        with JudgementCache(default_cache_path()) as cache:
            return Judge(self._backend, self._settings, metric, seed=seed, cache=cache).judge(items)

    def _no_answer(self, metric: str, row: Mapping[str, Any]) -> Judgement:
        return Judgement(
            row["id"],
            outline_of(metric).key,
            None,
            None,
            None,
            "no_answer",
            text_sha256(""),
            self._backend.sha256,
            0.0,
        )


def open_backend(settings: JudgeSettings, spec: Mapping[str, Any]) -> Any:
    """What runs the judge model, as the config says."""
    from ray_jobs.judging.models import open_local, open_remote

    if settings.backend != "engine":
        return open_remote(settings)
    from ray_jobs.export.base import default_cache_dir, resolve_gguf
    from serving.engine import Engine
    from serving.engine.settings import EngineSettings

    own = spec["own_models"].get(settings.model)
    path = Path(own) if own else resolve_gguf(settings.model, settings.revision, default_cache_dir())
    opened = Engine.open(path, EngineSettings.model_validate_json(spec["engine"]))
    return open_local(opened, settings, opened.model_sha256)


def item_id(row: Mapping[str, Any]) -> str:
    return f"{row['subject']}:{row['id']}"


def item_of(row: Mapping[str, Any]) -> JudgeItem:
    messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
    return JudgeItem(
        item_id(row), Prompt(row["id"], row["source"], messages, row["reference"]), row["answer"]
    )


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.judging.metrics import check_inputs

    outputs = [JUDGEMENTS.format(subject=subject) for subject in SUBJECTS]
    prompts = generate.read_prompts(folder)
    metrics = [outline_of(metric) for metric in config.judge.metrics]
    for metric in metrics:
        check_inputs(metric, prompts, config.judge.inputs)
    pairs = [pair_from_row(row) for row in read_rows(folder.path("data/trust.parquet"))]
    pairs = pairs[: config.judge.trust.num_pairs]
    references = trust_references(config, pairs)
    rows = answer_rows(folder, prompts) + trust_rows(config, pairs, references)
    cluster.connect()
    unfinished = folder.path("judgements/unfinished")
    job = judge_job(config, folder, [metric.key for metric in metrics])
    results = compute_rows(job, rows, unfinished, judge_pool(config))
    for subject, output in zip(SUBJECTS, outputs, strict=True):
        write_rows(
            folder.path(output), [row for row in results if row["subject"] == subject], Judgement.COLUMNS
        )
    folder.write_json("judgements/trust.json", trust(config, folder, pairs, references))
    shutil.rmtree(unfinished, ignore_errors=True)
    return [*outputs, "judgements/trust.json"]


def judge_job(config: Config, folder: RunFolder, metrics: Sequence[str]) -> RowJob:
    pool = judge_pool(config)
    return RowJob(
        stage="judge",
        what="judgements",
        actor=JudgeActor,
        spec={
            "judge": config.judge.model_dump_json(),
            "engine": pool.settings.model_dump_json(),
            "own_models": {"run:base": str(folder.path("models/base/model.gguf"))},
            "seed": config.seed,
        },
        columns_in=ITEM_COLUMNS,
        columns_out=RESULT_COLUMNS,
        key=("subject", "id", "metric"),
        keys_of=lambda row: [(row["subject"], row["id"], metric) for metric in metrics],
    )


def judge_pool(config: Config) -> EngineActors:
    """The engines of the config with the judge's own context, and a cache that suits long prompts.

    `auto` may choose bf16, which writes answers faster but reads prompts at half the speed of f16
    (AVX512-BF16, llama.cpp's fused attention); judging is mostly reading.
    """
    settings = config.engine.settings
    changes: dict[str, Any] = {"context_tokens": config.judge.context_tokens}
    if settings.kv_type == "auto":
        changes["kv_type"] = "f16"
    return config.engine.model_copy(update={"settings": settings.model_copy(update=changes)})


def answer_rows(folder: RunFolder, prompts: Iterable[Prompt]) -> list[dict[str, Any]]:
    """Both models' answers as rows to judge; those to one prompt stand together, to share its prefix."""
    answers = {
        model: {answer.id: answer for answer in generate.answers_of(folder, model)}
        for model in generate.MODELS
    }
    return [
        {"subject": model, **as_row(prompt), "answer": answers[model][prompt.id].answer}
        for prompt in prompts
        for model in generate.MODELS
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
    """How far the judge is to be trusted, as JSON; by the first metric of the config."""
    from ray_jobs.judging.trust import judge_trust

    first = outline_of(config.judge.metrics[0]).key
    by_subject = {
        subject: [row for row in judgements_of(folder, subject) if row.metric == first]
        for subject in ("trust", "repeat")
    }
    result = judge_trust(
        pairs, by_subject["trust"], config.judge.trust, repeats=by_subject["repeat"], references=references
    )
    return dataclasses.asdict(result)


def judgements_of(folder: RunFolder, subject: str) -> list[Judgement]:
    return [Judgement.from_row(row) for row in read_rows(folder.path(JUDGEMENTS.format(subject=subject)))]


STAGE = Stage(
    name="judge",
    settings=(
        "seed",
        "judge",
        "engine.settings.backend",
        "engine.settings.kv_type",
        "engine.settings.deterministic",
    ),
    needs=(
        "data/prompts.parquet",
        "data/trust.parquet",
        *(generate.ANSWERS.format(model=model) for model in generate.MODELS),
    ),
    folders=("judgements",),
    run=run,
)
