"""Does llama.cpp compute with the exported file what transformers computes with the merged model?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.export.errors import ExportError, ModelMismatch
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_writer import F16_MAX, WeightType
from ray_jobs.export.logits import Probe, Reading, read_probes

MAX_COMPUTE_ERROR: Mapping[str, float] = {"f32": 0.01, "f16": 0.1, "bf16": 0.5}
"""Weight type -> largest error of a logit against transformers with the same rounded weights, in standard
deviations of the logits at its position. CPU kernels that keep activations in float32 differ by 0.0001,
those that round them too by 0.02 (f16) to 0.2 (bf16); a wrong layout by 1 or more."""
NEAR_TIE = 6.0
"""Two tokens are near a tie where the model's logits of them differ by less than this many root-mean-square
errors of a logit at that position: rounding the weights can then choose either."""

CHATS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Name the capital of France and one river that flows through it."},),
    ({"role": "user", "content": 'Write {"name": "Ada", "age": 36} as a sentence.'},),
    ({"role": "user", "content": "Übersetze ins Englische: „Der Käse ist für 3,50 € im Angebot.“ 🧀"},),
    (
        {"role": "user", "content": "What is 17 + 25?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "And twice that?"},
    ),
    ({"role": "user", "content": "def add(a, b):\n    return a - b\n\nFind the mistake."},),
    ({"role": "user", "content": "Count from one to twelve, in words, separated by commas."},),
    ({"role": "user", "content": "請用一句話介紹長城。"},),
    ({"role": "user", "content": "Write two lines of a poem about rain on a tin roof."},),
)
"""Letters, digits, quotes, code, several turns, scripts of one to four bytes a letter."""


@dataclass(frozen=True)
class Parity:
    """How close the exported file is to the model."""

    prompts: int
    tokens: int
    """Greedy tokens compared."""
    identical: int
    near_ties: int
    """Tokens that differ within rounding; identical + near_ties = tokens."""
    max_relative_logit_error: float
    """Against the model in float32: what rounding its weights costs; in standard deviations of the logits at
    a position."""
    max_relative_compute_error: float
    """Against the model with the same rounded weights: what is computed otherwise; same unit."""


def check_parity(
    model: Any,
    hf_dir: Path,
    gguf: Path,
    dtype: WeightType,
    *,
    num_prompts: int,
    num_tokens: int,
    threads: int,
) -> Parity:
    """Compares `model` (transformers, float32) with `gguf` (llama.cpp, the same weights in `dtype`).

    Both continue the same chat prompts; llama.cpp is shown the model's own greedy tokens, so that one
    difference does not hide what follows. Rounds the model's weights in place. Raises ModelMismatch when
    tokenizers or chat templates differ, ExportError when llama.cpp computes something else, or chooses
    another token without a near tie.
    """
    tokenizer, template = _tokenizer(hf_dir), GgufFile(gguf).get("tokenizer.chat_template")
    probes, expected = [], []
    for chat in CHATS[:num_prompts]:
        text, prompt_ids = _render(tokenizer, chat)
        _check_template(tokenizer, chat, text, template, gguf)
        answer_ids, logits_TV = greedy(model, prompt_ids, num_tokens, _ends(model, tokenizer))
        probes.append(Probe(text, tuple(prompt_ids), tuple(answer_ids)))
        expected.append(logits_TV)
    readings = read_probes(gguf, probes, threads)
    round_weights(model, dtype)
    rounded = [teacher_forced(model, probe) for probe in probes]
    limit = MAX_COMPUTE_ERROR[dtype]
    parts = zip(probes, expected, rounded, readings, strict=True)
    return _summed([compare(*part, limit) for part in parts])


def greedy(
    model: Any, prompt_ids: Sequence[int], num_tokens: int, ends: frozenset[int]
) -> tuple[list[int], NDArray[np.float32]]:
    """The model's likeliest tokens, up to an end token, and the logits [T, V] that chose them."""
    import torch

    tokens, rows, past = torch.tensor([list(prompt_ids)]), [], None
    answer: list[int] = []
    with torch.inference_mode():
        while len(answer) < num_tokens and not ends.intersection(answer[-1:]):
            out = model(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            rows.append(out.logits[0, -1].float().numpy())
            answer.append(int(rows[-1].argmax()))
            tokens = torch.tensor([[answer[-1]]])
    return answer, np.stack(rows)


def round_weights(model: Any, dtype: WeightType) -> None:
    """Rounds matrices as `write_gguf` stores them; vectors stay in float32."""
    import torch

    kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    for weight in model.parameters():
        if weight.dim() > 1 and not (dtype == "f16" and weight.abs().max() > F16_MAX):
            weight.data.copy_(weight.data.to(kind))


def teacher_forced(model: Any, probe: Probe) -> NDArray[np.float32]:
    """The model's logits [T, V] before each token of the probe's answer."""
    import torch

    ids = [*probe.prompt_ids, *probe.answer_ids[:-1]]
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=len(probe.answer_ids))
    logits_TV: NDArray[np.float32] = out.logits[0].float().numpy()
    return logits_TV


def compare(
    probe: Probe,
    expected_TV: NDArray[np.float32],
    rounded_TV: NDArray[np.float32],
    reading: Reading,
    limit: float,
) -> Parity:
    """One prompt's parity. Raises ModelMismatch or ExportError as `check_parity`."""
    if reading.text_ids != probe.prompt_ids:
        raise ModelMismatch(f"the GGUF's tokenizer is not the base's: {probe.text[:60]!r} gives other tokens")
    size = min(expected_TV.shape[1], reading.logits.shape[1])  # either may be padded with unused tokens
    expected_TV, rounded_TV, found_TV = expected_TV[:, :size], rounded_TV[:, :size], reading.logits[:, :size]
    compute_error = _relative_error(found_TV, rounded_TV)
    if not compute_error <= limit:
        raise ExportError(
            f"llama.cpp does not compute what the model does: a logit is off by {compute_error:.3g} standard "
            f"deviations (allowed: {limit})"
        )
    noise_T = np.sqrt(np.square(found_TV - expected_TV).mean(axis=1))
    near_ties = 0
    for row, token in enumerate(probe.answer_ids):
        other = int(found_TV[row].argmax())
        gap = float(expected_TV[row, token] - expected_TV[row, other])
        if gap > NEAR_TIE * noise_T[row]:
            raise ExportError(f"llama.cpp chooses token {other}, the model {token}, {gap:.3g} above it")
        near_ties += other != token
    identical = len(probe.answer_ids) - near_ties
    logit_error = _relative_error(found_TV, expected_TV)
    return Parity(1, len(probe.answer_ids), identical, near_ties, logit_error, compute_error)


def _relative_error(found_TV: NDArray[np.float32], expected_TV: NDArray[np.float32]) -> float:
    """Largest error of a logit in standard deviations of the logits at its position."""
    return float((np.abs(found_TV - expected_TV).max(axis=1) / expected_TV.std(axis=1)).max())


def _summed(parts: Sequence[Parity]) -> Parity:
    return Parity(
        prompts=len(parts),
        tokens=sum(part.tokens for part in parts),
        identical=sum(part.identical for part in parts),
        near_ties=sum(part.near_ties for part in parts),
        max_relative_logit_error=max(part.max_relative_logit_error for part in parts),
        max_relative_compute_error=max(part.max_relative_compute_error for part in parts),
    )


def _tokenizer(hf_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hf_dir, local_files_only=True, trust_remote_code=False)


def _render(tokenizer: Any, chat: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
    text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def _check_template(
    tokenizer: Any, chat: Sequence[dict[str, str]], text: str, template: str, gguf: Path
) -> None:
    """The GGUF's chat template, by which the model is served, must say what it was trained with."""
    other = tokenizer.apply_chat_template(
        list(chat), tokenize=False, add_generation_prompt=True, chat_template=template
    )
    if other != text:
        raise ModelMismatch(
            f"{gguf}: its chat template is not the base's: it renders {other[:80]!r}, not {text[:80]!r}"
        )


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [ends])
