"""Is one model better than another? `python -m ray_jobs.compare A.gguf B.gguf --prompts FILE`.

Two GGUF files or more, no training: the first is the base, each other one a candidate. All answer the
prompts, the judge scores the answers, and the verdict says whether a candidate is better, with the stages,
statistics and report of a run. Nothing is promoted.
"""

import argparse
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_jobs.cli.results import Answer, planned, run_result, tell
from ray_jobs.command import end, end_by_library, run_owned
from ray_jobs.config import Config, parse_config, put_change
from ray_jobs.errors import ConfigError, StageFailed, UserError
from ray_jobs.logs import configure, duration
from ray_jobs.stages.compare import (
    NAMES,
    Comparison,
    check_models,
    comparison,
    preflight,
    read_data,
    stages,
)
from ray_jobs.summary import verdict_lines
from ray_jobs.yaml_files import read_yaml
from serving.storage.remote import local_path

log = logging.getLogger(__name__)

DEFAULT_JUDGE = "flowaicom/Flow-Judge-v0.1-GGUF:flow-judge-v0.1-Q4_K_M.gguf"
SECTIONS = ("seed", "storage", "data", "engine", "generation", "judge", "verdict")
"""What a comparison takes from a run's config."""
GENERIC = re.compile(r"models?|(ggml-)?model([._-](bf16|f16|f32|i?q\d\w*))?", re.IGNORECASE)
"""Names of files and folders that say nothing of which model it is."""
MAX_NAME = 100


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return tell(lambda: compared(options), as_json=options.json)


def compared(options: argparse.Namespace) -> Answer:
    configure(options.verbose)
    started = time.monotonic()
    try:
        config, given = settings(options)
        if options.check:
            plan = "\n".join(plan_lines(config, given))
            return Answer(0, f"{plan}\n", planned(config, plan))
        folder = run_owned(config, stages(given), NAMES, set(options.force))
    except (UserError, StageFailed) as error:
        return Answer(end(str(error), error.exit_code))
    except KeyboardInterrupt:
        return Answer(end("stopped; the same command goes on from here", 130))
    except Exception as error:
        return Answer(end_by_library(error))
    log.info("all done in %s", duration(time.monotonic() - started))
    return Answer(0, "\n".join(verdict_lines(folder)) + "\n", run_result(config))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m ray_jobs.compare",
        description="Compares GGUF models on prompts: generate, judge, verdict. What is done is skipped.",
    )
    add = result.add_argument
    add("models", nargs="+", metavar="MODEL", help="GGUF files, the base first (or owner/repo:file.gguf)")
    add("--prompts", help="file, hub data set or bundled:prompts that all models answer")
    add("--pairs", help="preference pairs of known order that the judge is tested on")
    add("--judge", help=f"GGUF that judges, or run:base; default {DEFAULT_JUDGE}")
    add("--config", type=Path, help="run config whose judge, generation, engine and verdict are taken")
    add("--name", help="the folder under `storage`; default: from the models' names")
    add("--check", action="store_true", help="check all inputs and print the plan, without a cluster")
    add("--force", action="append", default=[], choices=NAMES, metavar="STAGE",
        help=f"redo a stage and those after it ({', '.join(NAMES)})")  # fmt: skip
    add("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE",
        help="change a field of the config, such as --set data.num_prompts=200")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object, for programs")
    add("--verbose", action="store_true", help="log more")
    return result


def settings(options: argparse.Namespace) -> tuple[Config, Comparison]:
    """The run that the options ask for. Raises UserError for what is wrong with them."""
    from ray_jobs.export.base import default_cache_dir, resolve_gguf

    if len(options.models) < 2:
        raise ConfigError("a comparison takes two models or more")
    data = config_data(options)
    config = parse_config(data, str(options.config or "compare"))
    pairs = config.data.preferences if "preferences" in data["data"] else None
    paths = [resolve_gguf(model, None, default_cache_dir()) for model in options.models]
    return config, comparison(paths, pairs)


def config_data(options: argparse.Namespace) -> dict[str, Any]:
    """The config as plain data: the file's sections, and what the command line says on top."""
    given: Any = read_yaml(options.config) if options.config else {"judge": {"model": DEFAULT_JUDGE}}
    if not isinstance(given, dict):
        raise ConfigError(f"{options.config}: must hold a mapping of sections")
    data: dict[str, Any] = {key: given.get(key) or {} for key in ("data", "judge", "verdict")}
    for section, value in data.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{options.config}: {section}: must hold a mapping")
    data = (
        {key: value for key, value in given.items() if key in SECTIONS}
        | data
        | {
            "name": options.name or default_name(options.models),
            "model": {"base": options.models[0]},
            "training": {},
        }
    )
    for named, section, key in (
        (options.prompts, "data", "prompts"),
        (options.pairs, "data", "preferences"),
        (options.judge, "judge", "model"),
    ):
        if named:
            data[section] = data[section] | {key: named if key == "model" else {"source": named}}
    if options.judge:
        data["judge"].pop("adapter", None)  # it is for the config's own judge
    for change in options.changes:
        put_change(data, change)
    if "prompts" not in data["data"]:
        raise ConfigError("give --prompts, or a --config with data.prompts")
    data["verdict"] = data["verdict"] | {"num_candidates": len(options.models) - 1}
    return data


def default_name(models: Sequence[str]) -> str:
    """The same for the same models, so that the same command goes on where it stopped.

    By the files' names; where these are alike, or say nothing, by folders too: the run, and the model in it.
    """
    addresses = [address_of(model) for model in models]
    labels = {address: words_of(address)[-1] for address in addresses}
    short = [*labels.values()]
    for address, label in labels.items():
        if short.count(label) > 1 or GENERIC.fullmatch(label):
            labels[address] = long_label(address)
    long = [*labels.values()]
    for address, label in labels.items():
        if long.count(label) > 1:
            labels[address] = f"{label}-{digest([address])}"
    name = f"compare-{'-'.join(labels[address] for address in addresses)}"
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9]}-{digest(addresses)}"


def address_of(model: str) -> str:
    """A model as it is called from wherever the command is given."""
    path = local_path(model)
    return os.path.abspath(path) if path.exists() else model


def words_of(address: str) -> list[str]:
    """The parts of an address as parts of a folder's name, the file's last."""
    parts = Path(address.removesuffix(".gguf")).parts
    words = (re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-") for part in parts)
    return [word for word in words if word] or ["model"]


def long_label(address: str) -> str:
    """The two parts of an address that tell most: of a run's model the run and the model."""
    words = words_of(address)
    return "-".join([word for word in words if not GENERIC.fullmatch(word)][-2:] or words[-1:])


def digest(addresses: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(addresses).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def plan_lines(config: Config, given: Comparison) -> list[str]:
    """What would be done, with all inputs read and checked."""
    from ray_jobs.plan import generation_line, judging_line, power_line

    prompts, pairs, _ = read_data(given, config)
    check_models(given)
    num_tested = preflight(config, prompts, pairs, given.models["base"])
    number, models = len(prompts), len(given.models)
    tested = f"tested on {num_tested} pairs" if num_tested else "not tested on known pairs: it cannot promote"
    lines = [
        ("run", f"{config.name}, seed {config.seed}, kept in {config.storage}/{config.name}"),
        *(("model", f"{role}: {path}") for role, path in given.models.items()),
        ("prompts", f"{number} of {config.data.prompts.source}"),
        ("generate", generation_line(config, number, models)),
        ("judge", f"{judging_line(config, number, models, num_tested)}; {tested}"),
        ("verdict", power_line(config, number)),
    ]
    return [f"{subject:<9} {text}" for subject, text in lines]


if __name__ == "__main__":
    sys.exit(main())
