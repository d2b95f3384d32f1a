"""What a model said when it was promoted, so that whoever serves it can tell whether it still says that.

A hash proves that the file is the same. It does not prove that this machine, this build and these settings
compute the same with it: a miscompiled kernel answers fluently, and wrongly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.engine import Engine, EngineError, Request, Result, Sampling

NUM_TOKENS = 8
MIN_AGREEMENT = 0.5
"""Share of the recorded tokens that must come again. Another CPU or number format may turn a near tie, and
the rest of that answer with it; a broken kernel agrees on next to nothing."""

_LIMIT_S = 60.0
_PROMPTS = (
    "Name a colour.",
    "What is the capital of France?",
    "Write the numbers from one to five.",
    "Translate to French: good morning",
)


def record(engine: Engine) -> bytes:
    """The model's first tokens on a few prompts, greedily. Raises EngineError if it does not answer."""
    rows = []
    for text in _PROMPTS:
        prompt = _rendered(engine, text)
        rows.append(
            {"prompt": text, "prompt_tokens": list(prompt), "tokens": list(_answer(engine, prompt).tokens)}
        )
    return json.dumps({"answers": rows}, indent=1).encode() + b"\n"


def check(engine: Engine, expected: Path) -> None:
    """Raises EngineError if the model does not say what the file holds, or the file holds nothing."""
    try:
        rows: list[dict[str, Any]] = json.loads(expected.read_bytes())["answers"]
        wanted = [(_prompt_of(engine, row), [int(token) for token in row["tokens"]]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{expected}: these are no recorded answers: {error}") from error
    agreed = sum(_common(_answer(engine, prompt).tokens, tokens) for prompt, tokens in wanted)
    total = sum(len(tokens) for _, tokens in wanted)
    if agreed < MIN_AGREEMENT * total:
        raise EngineError(
            f"{engine.model_path}: only {agreed} of {total} tokens are those recorded when it was promoted"
        )


def _prompt_of(engine: Engine, row: dict[str, Any]) -> tuple[int, ...]:
    """The very tokens that were answered: templates may write today's date (`strftime_now`) into a prompt.
    Records of before have the text alone."""
    if "prompt_tokens" in row:
        return tuple(int(token) for token in row["prompt_tokens"])
    return _rendered(engine, str(row["prompt"]))


def _rendered(engine: Engine, text: str) -> tuple[int, ...]:
    return engine.chat.render([{"role": "user", "content": text}])


def _answer(engine: Engine, prompt: tuple[int, ...]) -> Result:
    stream = engine.submit(Request("smoke", prompt, Sampling(max_tokens=NUM_TOKENS), deadline_s=_LIMIT_S))
    result = stream.result(2 * _LIMIT_S)
    if result.finish_reason not in ("stop", "length"):
        reason = result.error or result.finish_reason
        raise EngineError(f"{engine.model_path}: the model does not answer: {reason}")
    return result


def _common(tokens: tuple[int, ...], wanted: list[int]) -> int:
    """Tokens until the first difference."""
    count = 0
    for one, other in zip(tokens, wanted, strict=False):
        if one != other:
            break
        count += 1
    return count
