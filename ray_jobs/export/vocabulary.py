"""The tokenizer of a model folder as llama.cpp's `tokenizer.ggml.*` keys.

What llama.cpp does with them: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of ggml."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
PATTERNS: Mapping[str, str] = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""Regular expression by which a tokenizer.json cuts text into words -> llama.cpp's name of it."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their IDs, and how text is cut into them."""

    model: str
    """`tokenizer.ggml.model`: gpt2 (byte-level BPE) or llama (sentencepiece)."""
    pre: str
    """`tokenizer.ggml.pre`: how text is cut into words."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    """Byte-level BPE alone."""
    scores: list[float]
    """Sentencepiece alone: what is joined first."""
    space_prefix: bool


def read_vocabulary(hf_dir: Path, size: int) -> Vocabulary:
    """The vocabulary in tokenizer.json, filled up to `size`, the rows of the embedding.

    Added tokens beyond it are left out, as Gemma 3's for images in its text-only sizes: no text becomes them.
    Raises ModelError, naming what is unknown, for a tokenizer that llama.cpp has no equal of.
    """
    path = hf_dir / "tokenizer.json"
    try:
        data = json.loads(path.read_bytes())
        model = data["model"]
        everything_added = data.get("added_tokens") or []
        added = [token for token in everything_added if int(token["id"]) < size]
        beyond = {int(token["id"]) for token in everything_added} - {int(token["id"]) for token in added}
        if model["type"] != "BPE":
            raise ModelError(f"{path}: a {model['type']} tokenizer needs its GGUF as `model.gguf`")
        names = {int(number): str(token) for token, number in model["vocab"].items()}
        names |= {int(token["id"]): str(token["content"]) for token in added}
        names = {number: token for number, token in names.items() if number not in beyond}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        sentencepiece = bool(model.get("byte_fallback"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: is damaged: {error}") from error
    if names and max(names) >= size:
        raise ModelError(f"{path}: has token {max(names)}, the model's embedding has {size} rows")
    tokens = [names.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = {int(token["id"]): CONTROL if token.get("special") else USER_DEFINED for token in added}
    types = [kinds.get(number, _type(names.get(number), model, sentencepiece)) for number in range(size)]
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _pre_tokenizer(data, path),
        tokens=tokens,
        types=types,
        merges=[] if sentencepiece else merges,
        scores=_scores(tokens, merges) if sentencepiece else [],
        space_prefix=sentencepiece and '"Prepend"' in json.dumps(data.get("normalizer")),
    )


def _type(token: str | None, model: Mapping[str, Any], sentencepiece: bool) -> int:
    if token is None:
        return UNUSED
    if sentencepiece and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return BYTE
    return UNKNOWN if sentencepiece and token == model.get("unk_token") else NORMAL


def _pre_tokenizer(data: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for the way that a tokenizer.json cuts text into words."""
    step = data.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    kinds = [item.get("type") for item in steps]
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str((steps[0].get("pattern") or {}).get("Regex"))
        if pattern in PATTERNS:
            return PATTERNS[pattern]
    raise ModelError(
        f"{path}: cuts words in a way that is not known here: give the model's GGUF as `model.gguf`"
    )


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Minus the rank of the merge that makes a token: sentencepiece joins the highest score first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(merges) + number)) for number, token in enumerate(tokens)]
