"""Splits of the data sets, and which base model this run is about."""

import logging
from contextlib import suppress

from ray_jobs.config import Config
from ray_jobs.errors import ModelError
from ray_jobs.records import as_row
from ray_jobs.runs import RunFolder
from ray_jobs.stages.base import Stage, data_files
from ray_jobs.stages.base_model import NOTE
from ray_jobs.stages.preflight import check_judging
from ray_jobs.tables import PAIR_COLUMNS, PROMPT_COLUMNS, write_rows

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.data.forecast import load_tokenizer, report_markdown, token_report
    from ray_jobs.data.split import split
    from ray_jobs.export.base import default_cache_dir, resolve_base

    splits = split(config.data, config.seed)
    base = resolve_base(config.model, default_cache_dir())
    check_judging(config, splits.prompts, splits.trust[: config.judge.trust.num_pairs], base.gguf)
    for name in ("train", "heldout", "trust"):
        pairs = getattr(splits, name)
        write_rows(folder.path(f"data/{name}.parquet"), [as_row(pair) for pair in pairs], PAIR_COLUMNS)
    prompts = [as_row(prompt) for prompt in splits.prompts]
    write_rows(folder.path("data/prompts.parquet"), prompts, PROMPT_COLUMNS)
    log.info(
        "prepare  %d pairs to train on, %d held out, %d to test the judge, %d prompts",
        len(splits.train), len(splits.heldout), len(splits.trust), len(splits.prompts),
    )  # fmt: skip
    folder.write_json(NOTE, {"name": base.name, "sha256": base.sha256})
    report = splits.report
    if (tokenizer := load_tokenizer(base.hf_dir)) is not None:
        report = report | {"tokens": token_report(config, splits.train, splits.prompts, tokenizer)}
    folder.write_json("data/report.json", report)
    folder.write("data/report.md", report_markdown(report).encode())
    names = (
        "train.parquet",
        "heldout.parquet",
        "trust.parquet",
        "prompts.parquet",
        "report.json",
        "report.md",
        "base.json",
    )
    return [f"data/{name}" for name in names]


def local_files(config: Config) -> dict[str, str]:
    """Hashes of the data files and of the model on this machine, so that a changed file is noticed."""
    from ray_jobs.export.base import default_cache_dir, local_sha256

    found = data_files(config.data.preferences.source, config.data.prompts.source)
    with suppress(ModelError):  # later stages need none of its files
        if base := local_sha256(config.model.base, default_cache_dir()):
            found["model.base: files"] = base
    return found


STAGE = Stage(
    name="prepare",
    settings=("seed", "data", "model"),
    needs=(),
    folders=("data",),
    run=run,
    extra_inputs=local_files,
    resumes=False,
)
