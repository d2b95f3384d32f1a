"""Answers of the base and of the candidate to the same prompts."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.config import Config
from ray_jobs.errors import RunConflict
from ray_jobs.records import (
    Answer,
    Prompt,
    as_row,
    messages_from,
    prompt_from_row,
    prompt_sha256,
    row_seed,
)
from ray_jobs.runs import RunFolder, file_sha256
from ray_jobs.stages import answered as done
from ray_jobs.stages import cluster, spent
from ray_jobs.stages.base import Stage, config_inputs
from ray_jobs.stages.begun import ahead_of, begin_rows, begun_rows
from ray_jobs.stages.engine_rows import RowJob, compute_file
from ray_jobs.stages.spent import Spent
from ray_jobs.tables import PROMPT_COLUMNS, RowFile, has_rows, iter_rows
from serving.storage.mirror import discard
from serving.storage.node_cache import local_copy

if TYPE_CHECKING:
    from serving.engine.settings import EngineSettings

log = logging.getLogger(__name__)

Beside = Callable[[Config, RunFolder], AbstractContextManager[Callable[[], None]]]
"""Gives what starts work beside the answering, and waits for its end."""

MODELS = ("base", "candidate")
"""Those that every run has; models_of adds further candidates."""
ANSWERS = done.ANSWERS
ENGINE_SETTINGS = tuple(
    f"engine.settings.{name}" for name in ("backend", "context_tokens", "kv_type", "deterministic")
)
"""The engine's settings that can change an answer; cores, slots and lanes only change when it comes."""


class AnswerActor:
    """An engine that answers blocks of prompts. Several blocks are in it at once and share its batches."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from ray_jobs.stages.engine_here import open_engine
        from serving.engine.settings import EngineSettings

        self._spec = spec
        settings = EngineSettings.model_validate_json(spec["engine"])
        self.engine = open_engine(local_copy(spec["model"]), settings)

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        from ray_jobs.tables import schema

        rows = answer_rows(self.engine, table.to_pylist(), self._spec)
        return pa.Table.from_pylist(rows, schema=schema(Answer.COLUMNS))


def answer_rows(engine: Any, rows: list[dict[str, Any]], spec: dict[str, Any]) -> list[dict[str, Any]]:
    """One answer row for each prompt row; what is wrong with a row stands in its `error`."""
    from serving.engine.errors import RequestError
    from serving.engine.types import Request, Sampling

    rows = [with_system(row, spec["system_prompt"]) for row in rows]
    requests, errors = [], {}
    for row in rows:
        sampling = Sampling(**spec["sampling"], seed=row_seed(spec["seed"], row["id"]))
        try:
            tokens = engine.chat.render(
                [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
            )
            requests.append(Request(id=row["id"], prompt=tuple(tokens), sampling=sampling))
        except RequestError as error:
            errors[row["id"]] = f"{error.code}: {error}"
    results = {result.id: result for result in engine.generate(requests)}
    return [_answer(row, results.get(row["id"]), errors.get(row["id"]), spec) for row in rows]


def with_system(row: Mapping[str, Any], system_prompt: str | None) -> dict[str, Any]:
    """The row, with the config's system turn before the others where it has none of its own."""
    if system_prompt is None or row["messages"][0]["role"] == "system":
        return dict(row)
    return {**row, "messages": [{"role": "system", "content": system_prompt}, *row["messages"]]}


def failed_answer(row: Mapping[str, Any], error: str, *, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer row of a prompt that no engine survives."""
    return [_answer(with_system(row, spec["system_prompt"]), None, error, spec)]


def _answer(row: dict[str, Any], result: Any, error: str | None, spec: dict[str, Any]) -> dict[str, Any]:
    failed = result is None or result.finish_reason not in ("stop", "length")
    answer = Answer(
        id=row["id"],
        source=row["source"],
        prompt_sha256=prompt_sha256(messages_from(row["messages"])),
        model_sha256=spec["model_sha256"],
        answer=None if failed else result.text,
        num_prompt_tokens=0 if result is None else result.num_prompt_tokens,
        num_cached_tokens=0 if result is None else result.num_cached_tokens,
        num_answer_tokens=0 if failed else result.num_answer_tokens,
        finish_reason="error" if failed else result.finish_reason,
        seconds=0.0 if result is None else round(result.seconds, 4),
        error=(error or _why(result)) if failed else None,
        backend=spec["backend"],
    )
    return as_row(answer)


def _why(result: Any) -> str:
    return "no result" if result is None else result.error or result.finish_reason


def no_work(*_: object) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


def run(config: Config, folder: RunFolder, beside: Beside = no_work) -> list[str]:
    """`beside`: what may be done while candidates answer; it is started once their engines have begun."""
    cluster.connect()
    base, *candidates = models_of(folder)
    outputs = [answered(config, folder, base)]
    with beside(config, folder) as start:
        outputs += [answered(config, folder, model, start) for model in candidates]
    return outputs


def answered(
    config: Config, folder: RunFolder, model: str, begun_to_answer: Callable[[], None] | None = None
) -> str:
    """The file of a model's answers to all prompts, with what is missing of it made."""
    output = ANSWERS.format(model=model)
    if has_rows(folder.path(output), len(RowFile(folder.path("data/prompts.parquet")))):
        return output
    log.info("generate answers of the %s model", model)
    spec = actor_spec(config, folder, model)
    begun = begun_rows(folder, "answers", answer_inputs(config, folder, spec)) if model == "base" else None
    if begun:
        spent.keep(folder, model, spent.read(ahead_of(folder), model))
    unfinished = begun or done.unfinished_of(folder, model)
    took = answer(config, folder, spec, unfinished, folder.path(output), begun_to_answer)
    spent.keep(folder, model, took)
    folder.publish([output])
    discard(unfinished)
    return output


def answer(
    config: Config,
    folder: RunFolder,
    spec: dict[str, Any],
    unfinished: Path,
    output: Path,
    begun_to_answer: Callable[[], None] | None = None,
) -> Spent | None:
    """The answers of one model to the run's prompts; see `compute_file`."""
    prompts = folder.path("data/prompts.parquet")
    return compute_file(answer_job(spec), prompts, output, unfinished, config.engine, begun_to_answer)


def base_ahead(config: Config, folder: RunFolder) -> None:
    """The base's answers before the trials are done; its model is in the folder of work ahead."""
    inner = ahead_of(folder)
    spec = actor_spec(config, inner, "base")
    unfinished = begin_rows(folder, "answers", answer_inputs(config, folder, spec))
    spent.keep(
        inner, "base", answer(config, folder, spec, unfinished, inner.path(ANSWERS.format(model="base")))
    )


def answer_inputs(config: Config, folder: RunFolder, spec: Mapping[str, Any]) -> dict[str, str]:
    """Everything that a model's answers follow from."""
    prompts = {"data/prompts.parquet": file_sha256(folder.path("data/prompts.parquet"))}
    settled = {name: str(spec[name]) for name in ("model_sha256", "backend", "seed")}
    return config_inputs(STAGE, config) | prompts | settled


def models_of(folder: RunFolder) -> tuple[str, ...]:
    """The run's models: base, candidate, and candidate-2 and so on where several trials are judged."""
    more: list[str] = []
    while folder.path("models", name := f"candidate-{len(more) + 2}", "manifest.json").is_file():
        more.append(name)
    return (*MODELS, *more)


def model_files(folder: RunFolder) -> tuple[str, ...]:
    return tuple(
        f"models/{model}/{name}" for model in models_of(folder) for name in ("model.gguf", "manifest.json")
    )


def answer_files(folder: RunFolder) -> tuple[str, ...]:
    return tuple(ANSWERS.format(model=model) for model in models_of(folder))


def answer_job(spec: dict[str, Any]) -> RowJob:
    return RowJob(
        stage="generate",
        what="answers",
        actor=AnswerActor,
        spec=spec,
        columns_in=PROMPT_COLUMNS,
        columns_out=Answer.COLUMNS,
        key=("id",),
        keys_of=lambda row: [(row["id"],)],
        failed=partial(failed_answer, spec=spec),
    )


def actor_spec(config: Config, folder: RunFolder, model: str) -> dict[str, Any]:
    """What an AnswerActor is told, as plain data."""
    manifest = folder.read_json(f"models/{model}/manifest.json")
    generation = config.generation
    settings = one_backend(config, folder)
    return {
        "model": folder.shared(f"models/{model}/model.gguf"),
        "model_sha256": manifest["sha256"],
        "engine": settings.model_dump_json(),
        "backend": settings.backend,
        "seed": seed_of(config, model),
        "system_prompt": generation.system_prompt,
        "sampling": {
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "max_tokens": generation.max_answer_tokens,
        },
    }


def one_backend(config: Config, folder: RunFolder) -> "EngineSettings":
    """The engine's settings with the backend settled: `auto` could mean different ones on unlike nodes."""
    from serving.engine.calibration import resolve

    settings = config.engine.settings
    if settings.backend != "auto":
        return settings
    found = resolve(settings, folder.path("models", "base", "model.gguf"))
    return settings.model_copy(update={"backend": found.backend})


def seed_of(config: Config, model: str) -> int:
    """The same for all models, unless the config wants the candidates' answers from another."""
    other = config.generation.candidate_seed
    return config.seed if model == "base" or other is None else other


def iter_prompts(folder: RunFolder, between: done.Part = done.WHOLE) -> Iterator[Prompt]:
    return map(prompt_from_row, iter_rows(folder.path("data/prompts.parquet"), *between))


def iter_answers(folder: RunFolder, model: str, between: done.Part = done.WHOLE) -> Iterator[Answer]:
    return map(Answer.from_row, done.answer_rows_of(folder, model, between))


def in_step(
    folder: RunFolder,
    models: Sequence[str],
    answers_in: RunFolder | None = None,
    between: done.Part = done.WHOLE,
) -> Iterator[tuple[Prompt, tuple[Answer, ...]]]:
    """Each prompt with the models' answers to it, few in memory at once.

    `answers_in`: the folder with the answers, where it is another. Raises RunConflict where a file of answers
    is not that of the prompts.
    """
    files = [iter_answers(answers_in or folder, model, between) for model in models]
    rows: Iterator[tuple[Any, ...]] = zip_longest(iter_prompts(folder, between), *files)
    for prompt, *answers in rows:
        for model, answer in zip(models, answers, strict=True):
            if prompt is None or answer is None or answer.id != prompt.id:
                found = f"after prompt {prompt.id!r}" if prompt is not None else "at the end"
                raise RunConflict(f"{ANSWERS.format(model=model)}: not the answers to the prompts: {found}")
        yield prompt, tuple(answers)


STAGE = Stage(
    name="generate",
    settings=("seed", "generation", *ENGINE_SETTINGS),
    needs=("data/prompts.parquet",),
    folders=("answers",),
    run=run,
    more_needs=model_files,
)
