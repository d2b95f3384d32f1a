"""The stages that compare given GGUF files: their data, the files, then generate, judge and verdict."""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.config import Config
from ray_jobs.data.settings import Source
from ray_jobs.errors import ConfigError, DataError
from ray_jobs.records import Pair, Prompt, as_row
from ray_jobs.runs import RunFolder, file_sha256
from ray_jobs.stages import judge, overlap, verdict
from ray_jobs.stages.base import Stage, data_files, flatten
from ray_jobs.tables import PAIR_COLUMNS, PROMPT_COLUMNS, write_rows

log = logging.getLogger(__name__)

NAMES = ("prepare", "models", "generate", "judge", "verdict")


@dataclass(frozen=True)
class Comparison:
    """GGUF files by the name of their role, base first, and the known pairs that the judge is tested on."""

    models: Mapping[str, Path]
    pairs: Source | None


def comparison(paths: Sequence[Path], pairs: Source | None) -> Comparison:
    """The first file is the base, the others are candidates."""
    roles = ("base", "candidate", *(f"candidate-{number}" for number in range(2, len(paths))))
    return Comparison(dict(zip(roles, paths, strict=False)), pairs)


def stages(given: Comparison) -> tuple[Stage, ...]:
    prepare = Stage(
        name="prepare",
        settings=("seed", "data.prompts", "data.num_prompts", "data.num_trust_pairs"),
        needs=(),
        folders=("data",),
        run=lambda config, folder: write_data(given, config, folder),
        extra_inputs=lambda config: data_inputs(given, config),
        resumes=False,
    )
    models = Stage(
        name="models",
        settings=(),
        needs=(),
        folders=("models",),
        run=lambda _, folder: put_models(given, folder),
        extra_inputs=lambda _: {role: file_sha256(path) for role, path in given.models.items()},
        resumes=False,
    )
    return prepare, models, overlap.STAGE, judge.STAGE, verdict.STAGE


def data_inputs(given: Comparison, config: Config) -> dict[str, str]:
    """The pairs, and hashes of all local data files."""
    sources = [config.data.prompts, *([given.pairs] if given.pairs else [])]
    hashes = data_files(*(source.source for source in sources))
    pairs = flatten("pairs", given.pairs.model_dump(mode="json")) if given.pairs else {"pairs": "none"}
    return pairs | hashes


def write_data(given: Comparison, config: Config, folder: RunFolder) -> list[str]:
    prompts, pairs, report = read_data(given, config)
    preflight(config, prompts, pairs, given.models["base"])
    write_rows(folder.path("data/prompts.parquet"), [as_row(row) for row in prompts], PROMPT_COLUMNS)
    write_rows(folder.path("data/trust.parquet"), [as_row(row) for row in pairs], PAIR_COLUMNS)
    folder.write_json("data/report.json", report)
    log.info("prepare  %d prompts, %d pairs to test the judge", len(prompts), len(pairs))
    return ["data/prompts.parquet", "data/trust.parquet", "data/report.json"]


def read_data(given: Comparison, config: Config) -> tuple[list[Prompt], list[Pair], dict[str, Any]]:
    """Prompts, each once, and known pairs, both in an order that the seed decides, and an account of them.

    Raises DataError when a data set cannot be read or holds no usable row.
    """
    from ray_jobs.data.load import load_pairs, load_prompts
    from ray_jobs.data.overlap import leak_key
    from ray_jobs.data.report import describe

    loaded = load_prompts(config.data.prompts, config.seed)
    each = {leak_key(prompt.messages): prompt for prompt in reversed(loaded.rows)}
    prompts = [each[key] for key in _shuffled(each, config.seed)][: config.data.num_prompts]
    report = {"prompts": describe(config.data.prompts, loaded)}
    if given.pairs is None:
        return prompts, [], report
    known = load_pairs(given.pairs, config.seed)
    by_id = {pair.id: pair for pair in known.rows}
    number = min(config.data.num_trust_pairs, config.judge.trust.num_pairs)
    pairs = [by_id[key] for key in _shuffled(by_id, config.seed)][:number]
    return prompts, pairs, report | {"preferences": describe(given.pairs, known)}


def _shuffled(keys: Mapping[str, object], seed: int) -> list[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def preflight(config: Config, prompts: Sequence[Prompt], pairs: Sequence[Pair], base: Path) -> int:
    """How many of the pairs can test the judge.

    Raises UserError for what would fail after the answers are there: a row that lacks an input of a metric,
    or a judge's context that is too small for the prompts.
    """
    from ray_jobs.stages.preflight import check_judging

    if not prompts:
        raise DataError(f"{config.data.prompts.source}: holds no usable prompt")
    return check_judging(config, prompts, pairs, base)


def check_models(given: Comparison) -> None:
    """Raises ModelLoadError or ModelMismatch for a file that is no sound GGUF or has no chat template."""
    from serving.engine import Tokenizer

    for path in given.models.values():
        with Tokenizer.open(path) as tokenizer:
            assert tokenizer.chat is not None


def put_models(given: Comparison, folder: RunFolder) -> list[str]:
    """The files in the run folder, which all nodes reach: as links where the file system has them."""
    check_models(given)
    outputs = []
    for role, path in given.models.items():
        target = folder.path("models", role, "model.gguf")
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, target)
        sha256 = file_sha256(target)
        folder.write_json(
            f"models/{role}/manifest.json",
            {"sha256": sha256, "bytes": target.stat().st_size, "file": path.name},
        )
        log.info("models   %s is %s, sha256 %s", role, path, sha256[:12])
        outputs += [f"models/{role}/model.gguf", f"models/{role}/manifest.json"]
    return outputs


def link_or_copy(source: Path, target: Path) -> None:
    """Of a link, as the hub's cache has them, the file that it leads to.

    Raises ConfigError when there is no room.
    """
    beside = target.with_name(f".{target.name}.partial")
    beside.unlink(missing_ok=True)
    try:
        try:
            os.link(source.resolve(), beside)
        except OSError:
            shutil.copyfile(source, beside)
        os.replace(beside, target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"storage: {target}: {error.strerror}") from error
