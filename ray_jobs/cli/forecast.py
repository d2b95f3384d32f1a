"""What a model of a given size will do on a machine, from rates that were measured there.

Rates are scaled by the number of weights: every weight takes part in every token. Training is taken to run at
SHARE_OF_MATRIX_RATE of the measured matrix product; frozen weights cost a forward pass and the gradient of
its input, four operations a weight and token.
"""

from dataclasses import asdict, dataclass
from typing import Any

from ray_jobs.cli.machine import EngineRate

SIZES = {
    "SmolLM2-135M": 134.5e6,
    "SmolLM2-360M": 361.8e6,
    "Llama-3.2-1B": 1.236e9,
    "SmolLM3-3B": 3.075e9,
    "Llama-3.2-3B": 3.213e9,
    "Phi-3.5-mini": 3.821e9,
    "Llama-3.1-8B": 8.030e9,
    "Mistral-Small-2409": 22.247e9,
}
"""Model -> weights, from the configs and safetensors headers that their makers publish."""

Q4_0_BITS = 4.6
"""Bits a weight in a q4_0 file: 4.5, and the output layer in more."""
SERVING_EXTRA_BYTES = 0.6e9
"""Process, buffers and the context of a few slots."""
TRAINING_EXTRA_BYTES = 2.5e9
"""Process, adapters with their optimiser, activations of 4,096 tokens with recomputation."""
SHARE_OF_MATRIX_RATE = 0.16
"""`benchmarks.orpo_step` on real pairs up to 768 tokens, SmolLM2-135M 2 cores of an Intel Xeon with AMX."""
OPERATIONS_PER_WEIGHT = 4
PROMPT_TOKENS = ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Outlook:
    """One model on one machine; None where nothing was measured."""

    model: str
    weights: float
    gguf_gb: float
    serves: bool
    trains: bool
    answer_tokens_per_s: float | None
    minutes_per_1000_answers: float | None
    train_tokens_per_s: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def outlook(
    name: str,
    memory: float | None,
    rate: EngineRate | None,
    matrix: float | None,
    *,
    bytes_per_weight: float = 4.0,
    training_memory: float | None = None,
) -> Outlook:
    """`memory` in bytes that engines may use, `training_memory` that trials may (a GPU's, else the same)."""
    weights = SIZES[name]
    file_bytes = weights * Q4_0_BITS / 8
    room = training_memory if training_memory is not None else memory
    answers = minutes = None
    if rate is not None:
        share = rate.num_weights / weights
        answers = rate.answer_tokens_per_s * share
        prompts = rate.prompt_tokens_per_s * share
        minutes = 1000 * (ANSWER_TOKENS / answers + PROMPT_TOKENS / prompts) / 60
    return Outlook(
        name,
        weights,
        file_bytes / 1e9,
        serves=memory is None or file_bytes + SERVING_EXTRA_BYTES < memory,
        trains=room is None or weights * bytes_per_weight + TRAINING_EXTRA_BYTES < room,
        answer_tokens_per_s=answers,
        minutes_per_1000_answers=minutes,
        train_tokens_per_s=matrix and matrix * SHARE_OF_MATRIX_RATE / (OPERATIONS_PER_WEIGHT * weights),
    )


def table(rows: list[Outlook]) -> list[str]:
    """The outlooks under a heading, a line a model."""
    lines = [
        f"{'model':<20}{'q4_0 file':>10}  {'serves':<7}{'tokens/s':>9}{'1000 answers':>14}"
        f"  {'trains':<7}{'tokens/s':>9}"
    ]
    for row in rows:
        minutes = row.minutes_per_1000_answers
        answers = f"{_rounded(minutes)} min" if minutes else "-"
        lines.append(
            f"{row.model:<20}{row.gguf_gb:>7.1f} GB  {_yes(row.serves):<7}"
            f"{_rounded(row.answer_tokens_per_s):>9}"
            f"{answers:>14}  {_yes(row.trains):<7}"
            f"{_rounded(row.train_tokens_per_s):>9}"
        )
    return lines


def _yes(fits: bool) -> str:
    return "yes" if fits else "no room"


def _rounded(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
