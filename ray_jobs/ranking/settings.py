"""A comparison of bases, as one YAML file states it: one run for each base, alike but for the base."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ray_jobs.config import NAME, Config, field_errors, parse_config, put_change
from ray_jobs.errors import ConfigError
from ray_jobs.settings import Section
from ray_jobs.yaml_files import read_yaml

OWN = ("model", "training", "search", "workers", "engine", "export")
"""Sections that may differ between bases; prompts, judge and seed must not."""


class Comparison(Section):
    """Bases to tune and to rank."""

    name: str
    """Beginning of the runs' names, and the folder of the ranking under `storage`."""
    config: str
    """The run that all share, a path relative to this file."""
    bases: Annotated[dict[str, dict[str, Any]], Field(min_length=2)]
    """Name -> dotted fields of the config that differ for this base, at least `model.base`."""


def load_comparison(path: Path, changes: Sequence[str] = ()) -> tuple[str, dict[str, Config]]:
    """The comparison's name, and base -> config of its run.

    Raises ConfigError, one line a wrong field, for a file, a base or a run's config that is wrong.
    """
    written = read_yaml(path)
    if isinstance(written, dict) and "bases" not in written and "model" in written:
        raise ConfigError(
            f"{path}: is the config of one run; a comparison has name, config and bases, as "
            "configs/seed-comparison.yaml"
        )
    try:
        comparison = Comparison.model_validate(written)
    except ValidationError as error:
        lines = field_errors(error, Comparison)
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from error
    shared = path.parent / comparison.config
    configs = {}
    for base, own in comparison.bases.items():
        if not NAME.fullmatch(base):
            raise ConfigError(f"{path}: bases.{base}: may hold letters, digits, dots, dashes and underscores")
        data = read_yaml(shared)
        for line in (*_lines(path, base, own), *changes):
            put_change(data, line)
        data["name"] = f"{comparison.name}-{base}"
        configs[base] = parse_config(data, f"{path}: bases.{base}")
    _check(path, configs)
    return comparison.name, configs


def _lines(path: Path, base: str, own: dict[str, Any]) -> Iterator[str]:
    """A base's fields in the form of --set."""
    import json

    for dotted, value in own.items():
        if dotted.partition(".")[0] not in OWN:
            raise ConfigError(
                f"{path}: bases.{base}.{dotted}: must be the same for all bases; {', '.join(OWN)} may differ"
            )
        yield f"{dotted}={json.dumps(value)}"


def _check(path: Path, configs: dict[str, Config]) -> None:
    context_tokens = next(iter(configs.values())).engine.settings.context_tokens
    for base, config in configs.items():
        if config.judge.model == "run:base":
            raise ConfigError(
                f"{path}: judge.model: run:base is another judge for each base; name one model for all"
            )
        if config.engine.settings.context_tokens != context_tokens:
            field = f"bases.{base}.engine.settings.context_tokens"
            raise ConfigError(f"{path}: {field}: must be the same for all")
