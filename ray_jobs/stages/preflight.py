"""What judging will need, counted before a night is spent on answers."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ray_jobs.config import Config
from ray_jobs.records import Pair, Prompt
from ray_jobs.stages.judge import check, known_items, trust_references

log = logging.getLogger(__name__)


def check_judging(config: Config, prompts: Sequence[Prompt], pairs: Sequence[Pair], base: Path) -> int:
    """Every row has what the metrics need, and fits the judge's context with an answer of full length.

    Returns how many of the pairs can test the judge. `base`: a GGUF with the base's tokenizer, for
    `judge.model: run:base`. Raises ConfigError or DataError that names metric and rows, ModelError when there
    is no such judge. Endpoints and other backends count their own tokens; for them only the inputs are
    checked.
    """
    check(config, lambda: prompts)
    references = trust_references(config, pairs)
    items = known_items(config, pairs, references)
    num_tested = len(items) // 2
    if references is not None and len(references) < len(pairs):
        log.warning(
            "judge    %d of %d known pairs have no other right answer that could be their reference, and do "
            "not test the judge by metrics that want one; see judge.trust.reference, or take one without",
            len(pairs) - len(references), len(pairs),
        )  # fmt: skip
    if config.judge.backend != "engine":
        return num_tested
    from ray_jobs.judging.counting import check_context

    check_context(config.judge, judge_file(config, base), prompts, items, config.generation.max_answer_tokens)
    return num_tested


def judge_file(config: Config, base: Path) -> Path:
    from ray_jobs.export.base import default_cache_dir, resolve_gguf
    from ray_jobs.judging.adapter import adapter_path

    if config.judge.adapter is not None:
        adapter_path(config.judge.adapter)
    if config.judge.model == "run:base":
        return base
    return resolve_gguf(config.judge.model, config.judge.revision, default_cache_dir())
