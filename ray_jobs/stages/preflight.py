"""What answering and judging will need, looked at before a night is spent on them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.config import Config
from ray_jobs.errors import ConfigError
from ray_jobs.records import Pair, Prompt, as_row
from ray_jobs.stages.generate import with_system
from ray_jobs.stages.judge_rows import check
from ray_jobs.stages.known_pairs import known_items, trust_references

if TYPE_CHECKING:
    from serving.engine.chat import ChatTemplate

log = logging.getLogger(__name__)

TRIED = 3
"""Prompts of each kind that are tried on a chat template."""


def check_judging(config: Config, prompts: Sequence[Prompt], pairs: Sequence[Pair], base: Path) -> int:
    """Every row has what the metrics need, and fits the judge's context with an answer of full length; the
    base's chat template takes the prompts.

    Returns how many of the pairs can test the judge. `base`: a GGUF with the base's tokenizer and template,
    also for `judge.model: run:base`. Raises ConfigError or DataError that names metric and rows, ModelError
    when there is no such judge. Endpoints and other backends count their own tokens; for them only the inputs
    are checked.
    """
    check(config, lambda: prompts)
    check_template(config, prompts, base)
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


def check_template(config: Config, prompts: Sequence[Prompt], base: Path) -> None:
    """Warns of prompts that the base's chat template refuses, with or without a system turn, of one question
    or of several turns. Raises ConfigError if it refuses all of them.

    A few of each kind are tried: what templates refuse, they refuse by its roles.
    """
    from serving.engine.tokenizer import Tokenizer

    kinds: dict[tuple[bool, bool], list[list[dict[str, str]]]] = {}
    for prompt in prompts:
        messages = with_system(as_row(prompt), config.generation.system_prompt)["messages"]
        kind = messages[0]["role"] == "system", len(messages) > 2
        kinds.setdefault(kind, []).append(messages)
    num_refused, why = 0, ""
    with Tokenizer.open(base) as tokenizer:
        for rows in kinds.values():
            refusals = [_refusal(tokenizer.chat, messages) for messages in rows[:TRIED]]
            if all(refusals):
                num_refused, why = num_refused + len(rows), refusals[0]
    if num_refused == len(prompts):
        hint = "; leave out generation.system_prompt" if config.generation.system_prompt else ""
        raise ConfigError(
            f"model.base: its chat template takes none of the {len(prompts)} prompts: {why}{hint}"
        )
    if num_refused:
        log.warning(
            "prepare  the base's chat template refuses %d of %d prompts: %s", num_refused, len(prompts), why
        )


def _refusal(chat: "ChatTemplate", messages: Sequence[Mapping[str, str]]) -> str:
    """Why the template does not take them; empty if it does."""
    from serving.engine.errors import RequestError

    try:
        chat.render(messages)
    except RequestError as error:
        return str(error)
    return ""


def judge_file(config: Config, base: Path) -> Path:
    from ray_jobs.export.base import default_cache_dir, resolve_gguf
    from ray_jobs.judging.adapter import adapter_path

    if config.judge.adapter is not None:
        adapter_path(config.judge.adapter)
    if config.judge.model == "run:base":
        return base
    return resolve_gguf(config.judge.model, config.judge.revision, default_cache_dir())
