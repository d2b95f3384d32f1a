"""A run, as one YAML file states it: typed, frozen, checked as a whole before anything starts."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ray_jobs.data.settings import DataSettings
from ray_jobs.errors import ConfigError
from ray_jobs.export.settings import ExportSettings, ModelSettings
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.search.settings import Dimension, SearchSettings
from ray_jobs.search.trials import check_trials
from ray_jobs.settings import Section
from ray_jobs.tracking.settings import TrackingSettings
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.yaml_files import parse_yaml, read_yaml
from serving.engine.settings import EngineSettings

INPUT = "Input should be"
"""How pydantic begins what a field must be."""
SPACE = ["search", "space"]
"""The section whose keys are fields by their dotted names."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class WorkerSettings(Section):
    """The workers of one trial: one in the trial's own process, or a group of Ray Train's."""

    per_trial: Annotated[int, Field(ge=1)] = 1
    """Data-parallel workers of one trial."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    """0 trains on CPU; a fraction lets several small trials share a GPU; `auto`: as many trials share one as
    its memory holds by an estimate that `--check` shows (on CPU where the cluster has no GPU)."""
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of a GPU, for `auto`; null: asked of a GPU of the cluster."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs a worker asks Ray for; on CPU also its number of threads."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _several_gpus_are_whole_ones(cls, gpus: float | Literal["auto"]) -> float | Literal["auto"]:
        if gpus != "auto" and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"above 1 must be a whole number, not {gpus:g}")
        return gpus

    @model_validator(mode="after")
    def _workers_of_a_trial_share_no_gpu(self) -> Self:
        gpus = self.gpus_per_worker
        if self.per_trial > 1 and not isinstance(gpus, str) and 0 < gpus < 1:
            raise ValueError(
                "gpus_per_worker: workers of one trial cannot share a GPU; use 1, or per_trial: 1"
            )
        return self


class GenerationSettings(Section):
    """How both models answer the evaluation prompts."""

    max_answer_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens after which an answer is cut (`finish_reason: length`)."""
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    """0 is greedy: the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of probability mass that is sampled from."""
    candidate_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of the candidates' answers where it shall not be the run's: to compare a model with itself."""
    system_prompt: str | None = None
    """Put before every prompt that has no system turn of its own."""


class JobEngineSettings(EngineSettings):
    """An engine that runs rows of a job: many requests at once, whose answers are to be the same again."""

    deterministic: bool | Literal["auto"] = "auto"
    """Exact repeatability: an answer does not depend on what is computed beside it, to the last digit. With
    many rows at work it costs nothing. `auto`: where this processor's kernels allow it, which is tried when
    an engine is opened; true: else too, one sequence at a time. llama.cpp only: OpenVINO has no such mode."""


class EngineActors(Section):
    """The actors that run GGUF models, for answers and for judgements."""

    actors: Annotated[int, Field(ge=0)] = 0
    """Engines per stage; 0: as many as the cluster's CPUs hold."""
    rows_per_block: Annotated[int, Field(ge=1)] = 16
    """Rows that are written, and lost by a crash, together."""
    ahead: bool = True
    """Whether cores that a stage leaves idle do work of a later one: engines answer with the base, and judge
    that, while trials train on GPUs; or judge while candidates answer."""
    settings: JobEngineSettings = JobEngineSettings()
    """Each actor's engine."""


class Config(Section):
    """One run. Paths are relative to the working directory."""

    name: str
    """The run's folder under `storage`: letters, digits, dot, dash, underscore."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Every random choice of the run follows from it."""
    storage: str = "runs"
    """Folder that all nodes reach, or URI of an object store (s3://…, gs://…)."""
    registry: str = "registry"
    """Folder or URI of the champion that the endpoint serves."""
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings
    search: SearchSettings = SearchSettings()
    workers: WorkerSettings = WorkerSettings()
    export: ExportSettings = ExportSettings()
    engine: EngineActors = EngineActors()
    generation: GenerationSettings = GenerationSettings()
    judge: JudgeSettings
    verdict: VerdictSettings = VerdictSettings()
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                "may hold letters, digits, dots, dashes and underscores, and starts with a letter or digit"
            )
        return name

    @field_validator("storage", "registry")
    @classmethod
    def _is_a_place(cls, address: str) -> str:
        if not address:
            raise ValueError("is empty")
        if re.match(r"file://(?!/|localhost/)", address):
            raise ValueError(f"a file URI names a whole path: file:///… in place of {address}")
        return address

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        lora = self.training.lora
        # what is written down of a run has the 0 that nobody set
        if self.training.seed not in (TrainingSettings.model_fields["seed"].default, self.seed):
            raise ValueError("training.seed: the run's seed is used in its place; set seed")
        if self.export.adapter and (lora is None or lora.dora):
            kind = (
                "DoRA cannot be kept apart from the base" if lora else "there is none without training.lora"
            )
            raise ValueError(f"export.adapter: {kind}")
        room = self.engine.settings.context_tokens - self.generation.max_answer_tokens
        if room < 16:
            raise ValueError(
                f"generation.max_answer_tokens leaves {room} of engine.settings.context_tokens for the prompt"
            )
        check_trials(self.training, self.search, self.workers.per_trial)
        if self.search.scheduler == "pbt":
            self._population_fits()
        return self

    def _population_fits(self) -> None:
        training, every = self.training, self.search.perturb_every_steps
        evaluates = training.eval_every_steps
        if evaluates is None or training.checkpoint_every_steps != evaluates:
            raise ValueError(
                "training.checkpoint_every_steps: search.scheduler pbt needs one at every evaluation; "
                "set it and eval_every_steps to the same number"
            )
        if every is not None and every % evaluates:
            raise ValueError("search.perturb_every_steps: must be a multiple of training.eval_every_steps")


def load_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with `dotted.field=value` changes put in and checked like the file.

    Raises ConfigError that names the file and every wrong field, a field a line.
    """
    data = read_yaml(path)
    for change in changes:
        put_change(data, change)
    return parse_config(data, str(path))


def put_change(data: Any, change: str) -> None:
    """Puts `dotted.field=value` (the value in YAML) into plain data. Raises ConfigError for another form."""
    dotted, equals, text = change.partition("=")
    *parents, leaf = keys_of(dotted)
    if not equals or not all((*parents, leaf)):
        raise ConfigError(f"--set {change}: must have the form dotted.field=value")
    target = data
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"--set {change}: {dotted} is not a field of a section")
    target[leaf] = parse_yaml(text, f"--set {change}")


def keys_of(dotted: str) -> list[str]:
    """The keys, one within the other, that a dotted field stands for; those of `search.space` have dots."""
    keys = dotted.split(".")
    start, end = len(SPACE), len(keys)
    if keys[:start] != SPACE or end == start or not all(keys):
        return keys
    if end > start + 1 and keys[-1] in Dimension.model_fields:
        end -= 1
    return [*SPACE, ".".join(keys[start:end]), *keys[end:]]


def parse_config(data: Any, origin: str) -> Config:
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: must hold a mapping of sections, not {type(data).__name__}")
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{origin}: {error}") from error
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {line}" for line in field_errors(error))) from error


def field_errors(error: ValidationError, root: type[Section] | None = None) -> list[str]:
    """One line a wrong field: its dotted name and what is wrong. `root`: the section that was read."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            message = _unknown_field(item["loc"], root or Config)
        elif item["type"] == "missing":
            message = "is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            if message.startswith(INPUT):
                message = f"must be{message.removeprefix(INPUT)}{_shown(item['input'])}"
        lines.append(f"{field}: {message}" if field else message)
    return lines


def _shown(value: Any) -> str:
    """What stands in a field instead, where it is short."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | int | float | None) else ""
    return f", not {text}" if 0 < len(text) <= 60 else ""


def _unknown_field(location: tuple[int | str, ...], root: Any) -> str:
    """Says that a key is unknown and, where one is close, which was meant."""
    import difflib

    model: Any = root
    for part in location[:-1]:
        annotation = (
            model.model_fields[part].annotation
            if hasattr(model, "model_fields") and part in model.model_fields
            else None
        )
        model = _section_of(annotation)
        if model is None:
            return "unknown field"
    names = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return (
        f"unknown field; did you mean {close[0]!r}?"
        if close
        else f"unknown field; known are {', '.join(names)}"
    )


def _section_of(annotation: Any) -> Any:
    import typing

    candidates = (annotation, *typing.get_args(annotation))
    return next((item for item in candidates if hasattr(item, "model_fields")), None)
