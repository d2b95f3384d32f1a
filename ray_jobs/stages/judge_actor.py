"""The actor that scores blocks of answers with a judge model."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.judging.metrics import outline_of, wants_reference
from ray_jobs.judging.parsing import WORDLESS
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.records import Judgement, Message, Prompt, as_row, text_sha256
from ray_jobs.tables import MESSAGES
from serving.storage.node_cache import local_copy

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
        self.engine = open_engine(self._settings, spec)
        self._backend = open_backend(self.engine, self._settings, spec)

    @functools.cached_property
    def _metrics(self) -> dict[str, bool]:
        """Each metric of the config, and whether it wants a reference."""
        settings = self._settings
        return {metric: wants_reference(outline_of(metric), settings.inputs) for metric in settings.metrics}

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        from ray_jobs.tables import schema

        given = table.to_pylist()
        results = []
        for metric in self._metrics:
            rows = [row for row in given if metric in metrics_of(row, self._metrics)]
            judged = zip(rows, self._judge(metric, rows), strict=True)
            results += [{"subject": row["subject"], **as_row(judgement)} for row, judgement in judged]
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
        return unscored(row, outline_of(metric).key, "no_answer", self._backend.sha256)


def open_engine(settings: JudgeSettings, spec: Mapping[str, Any]) -> Any:
    """The judge model in this process; None where something else runs it."""
    if settings.backend != "engine":
        return None
    from ray_jobs.export.base import default_cache_dir, resolve_gguf
    from ray_jobs.stages import engine_here
    from serving.engine.settings import EngineSettings

    own = spec["own_models"].get(settings.model)
    path = local_copy(own) if own else resolve_gguf(settings.model, settings.revision, default_cache_dir())
    engine = EngineSettings.model_validate_json(spec["engine"])
    if settings.adapter is not None:
        from ray_jobs.judging.adapter import ADAPTER, adapter_path

        engine = engine.model_copy(update={"adapters": {ADAPTER: str(adapter_path(settings.adapter))}})
    return engine_here.open_engine(path, engine)


def open_backend(engine: Any, settings: JudgeSettings, spec: Mapping[str, Any]) -> Any:
    """What runs the judge model, as the config says; `engine` from `open_engine`."""
    from ray_jobs.judging.models import open_local, open_remote
    from serving.engine.settings import EngineSettings

    if engine is None:
        cores = EngineSettings.model_validate_json(spec["engine"]).cores
        return open_remote(settings, cores=cores, gpus=spec["gpus"])
    return open_local(engine, settings, engine.model_sha256)


def metrics_of(row: Mapping[str, Any], metrics: Mapping[str, bool]) -> list[str]:
    """Those of the metrics that judge a row: a known pair may lack the reference that some want.

    `metrics`: name -> whether it wants one.
    """
    lacks = row["subject"] in ("trust", "repeat") and row["reference"] is None
    return [metric for metric, wants in metrics.items() if not (lacks and wants)]


def unscored(row: Mapping[str, Any], metric: str, failure: str, judge_sha256: str) -> Judgement:
    """The judgement of a row that the judge never saw to its end."""
    answer = text_sha256(row["answer"] or "")
    return Judgement(row["id"], metric, None, None, None, failure, answer, judge_sha256, 0.0)


def quarantined(row: Mapping[str, Any], error: str, *, metrics: Mapping[str, bool]) -> list[dict[str, Any]]:
    """The judgements of a row that no judge survives: its engine cannot say which file it had."""
    failure = error.partition(":")[0]
    return [
        {"subject": row["subject"], **as_row(unscored(row, metric, failure, ""))}
        for metric in metrics_of(row, metrics)
    ]


def why_unjudged(result: Mapping[str, Any]) -> str | None:
    """Why the judge came to no word, where its backend said so."""
    said: str | None = result["feedback"] if result["failure"] in WORDLESS else None
    return said


def item_id(row: Mapping[str, Any]) -> str:
    return f"{row['subject']}:{row['id']}"


def item_of(row: Mapping[str, Any]) -> JudgeItem:
    messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
    return JudgeItem(
        item_id(row), Prompt(row["id"], row["source"], messages, row["reference"]), row["answer"]
    )
