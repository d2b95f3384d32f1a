"""Metrics: flow-judge's presets and those that people write in YAML."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from ray_jobs.errors import ConfigError, DataError
from ray_jobs.judging.neutral import TEMPLATE_TAGS
from ray_jobs.judging.presets import PRESETS, MetricOutline, NamedInputs, tag_of
from ray_jobs.judging.settings import DEFAULT_INPUT_PARTS, InputPart
from ray_jobs.records import Prompt, text_sha256
from ray_jobs.runs import json_sha256
from ray_jobs.settings import Section
from ray_jobs.yaml_files import read_yaml

if TYPE_CHECKING:
    from ray_jobs.judging.flow import Metric

Text = Annotated[str, Field(pattern=r"\S")]

_INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*( [A-Za-z0-9_]+)*")
_MAX_SCORE = 1000


class _MetricFile(Section):
    """A metric of one's own. Scores are whole numbers from 0, as flow-judge's output format has them."""

    name: Text
    criteria: Text
    rubric: Annotated[dict[int, Text], Field(min_length=2)]
    required_inputs: tuple[Text, ...]
    required_output: Text = "response"

    @field_validator("rubric")
    @classmethod
    def _scores_are_offered(cls, rubric: dict[int, str]) -> dict[int, str]:
        wrong = [score for score in rubric if not 0 <= score <= _MAX_SCORE]
        if wrong:
            raise ValueError(f"score {wrong[0]} is not a whole number from 0 to {_MAX_SCORE}")
        return rubric

    @field_validator("required_inputs", "required_output")
    @classmethod
    def _names_make_tags(cls, names: tuple[str, ...] | str) -> tuple[str, ...] | str:
        listed = (names,) if isinstance(names, str) else names
        for name in listed:
            if not _INPUT_NAME.fullmatch(name):
                raise ValueError(f"{name!r} makes no tag: use letters, digits, _ and single spaces")
            if tag_of(name) in TEMPLATE_TAGS:
                raise ValueError(f"{name!r} is a tag of the judge's own prompt; choose another name")
        if len({tag_of(name) for name in listed}) < len(listed):
            raise ValueError("the same name stands twice")
        return names


def outline_of(name_or_path: str) -> MetricOutline:
    """What a metric needs and offers, without loading flow_judge. Raises ConfigError as load_metric does."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    metric = _read_metric_file(name_or_path)
    scores = tuple(sorted(metric.rubric))
    return MetricOutline(metric.name, metric.name, metric.required_inputs, metric.required_output, scores)


def outlines_of(metrics: Sequence[str]) -> list[MetricOutline]:
    """All that `judge.metrics` names. Raises ConfigError as load_metric does, and for two of one name."""
    try:
        found = [outline_of(path) for path in metrics]
    except ConfigError as error:
        raise ConfigError(f"judge.metrics: {error}") from error
    keys = [metric.key for metric in found]
    for path, key in zip(metrics, keys, strict=True):
        if keys.count(key) > 1:
            raise ConfigError(f"judge.metrics: {path}: another metric has the name {key!r} too")
    return found


def metric_sha256(name_or_path: str) -> str:
    """Of a metric's name in flow_judge, or of what its file holds. Raises ConfigError as load_metric does."""
    if name_or_path in PRESETS:
        return text_sha256(name_or_path)
    return json_sha256(_read_metric_file(name_or_path).model_dump(mode="json"))


def load_metric(name_or_path: str) -> "Metric":
    """A preset by its name in flow_judge, or the metric in a YAML file, as a flow_judge Metric.

    The file holds `name`, `criteria`, `rubric` (score -> what deserves it), `required_inputs` and, if it is
    not `response`, `required_output`. Raises ConfigError that names the file and the field, or the preset.
    """
    if name_or_path in PRESETS:
        from ray_jobs.judging.flow import presets

        preset: Metric = getattr(presets, name_or_path)
        return preset
    metric = _read_metric_file(name_or_path)
    from ray_jobs.judging.flow import CustomMetric, RubricItem

    return CustomMetric(
        name=metric.name,
        criteria=metric.criteria.strip(),
        rubric=[
            RubricItem(score=score, description=text.strip()) for score, text in sorted(metric.rubric.items())
        ],
        required_inputs=list(metric.required_inputs),
        required_output=metric.required_output,
    )


def _read_metric_file(path: str) -> _MetricFile:
    if not path.endswith((".yaml", ".yml")):
        raise ConfigError(f"metric {path!r}: neither a .yaml file nor one of {', '.join(PRESETS)}")
    data = read_yaml(Path(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping with name, criteria, rubric and required_inputs")
    try:
        return _MetricFile.model_validate(_tuples(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ConfigError(f"{path}: {field}: {_message(first)}") from error


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _message(error: Any) -> str:
    if error["type"] == "too_short":
        return "needs at least two scores, each with its description"
    if error["type"] == "string_pattern_mismatch":
        return "is empty"
    return str(error["msg"]).removeprefix("Value error, ")


def wants_reference(metric: NamedInputs, chosen: Mapping[str, InputPart]) -> bool:
    """Whether the metric compares an answer with a reference; `chosen`: `judge.inputs`."""
    return "reference" in input_parts(metric, chosen).values()


def input_parts(metric: NamedInputs, chosen: Mapping[str, InputPart]) -> dict[str, InputPart]:
    """Which part of a row each of the metric's inputs is made of: the config's choice, else the default.

    Raises ConfigError for an input that has neither.
    """
    names = list(metric.required_inputs or ())
    parts: dict[str, InputPart] = {}
    for name in names:
        part = chosen.get(name) or DEFAULT_INPUT_PARTS.get(name)
        if part is None:
            raise ConfigError(
                f"judge.inputs.{name}: metric {metric.name!r} needs it; say which part of a row it is"
            )
        parts[name] = part
    if "query" in parts and "query" not in chosen and parts.get("context") == "earlier_turns":
        parts["query"] = "last_turn"
    return parts


def input_text(prompt: Prompt, part: InputPart) -> str | None:
    """One part of a row as the judge reads it; None where the row has nothing there."""
    system = [message for message in prompt.messages if message.role == "system"]
    turns = [message for message in prompt.messages if message.role != "system"]
    if part == "reference":
        return prompt.reference or None
    if part == "system":
        return "\n\n".join(message.content for message in system) or None
    if part == "last_turn":
        return turns[-1].content if turns else None
    messages = prompt.messages if part == "conversation" else prompt.messages[:-1]
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages) or None


def check_inputs(
    metric: NamedInputs, prompts: Iterable[Prompt], chosen: Mapping[str, InputPart] | None = None
) -> None:
    """Raises DataError that names metric, input and row when a row lacks what the metric needs."""
    parts = input_parts(metric, chosen or {})
    for prompt in prompts:
        for name, part in parts.items():
            text = input_text(prompt, part)
            if text is None or not text.strip():
                raise DataError(
                    f"row {prompt.id}: metric {metric.name!r} needs {name!r} ({part}), which the row lacks"
                )
