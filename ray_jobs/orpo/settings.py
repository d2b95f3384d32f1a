"""What one ORPO training is told."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_jobs.settings import Section

EMBEDDINGS = frozenset({"lm_head", "embed_tokens"})
"""Output and input layer, as all families name them; neither the packed step nor the export adapts them."""

MANY_UNUSED = 0.1
"""Share of pairs above which it is warned of that they are not used."""


class LoraSettings(Section):
    """Low-rank adapters on frozen weights; without this block the whole model is trained."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Columns of each adapter's inner matrix."""
    alpha_over_rank: Annotated[float, Field(gt=0)] = 2.0
    """Factor on the adapter's output: LoRA's alpha divided by its rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs zeroed in training."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear` leaves out only the output layer."""
    dora: bool = False
    """Train magnitudes apart from directions (DoRA)."""

    @field_validator("target_modules")
    @classmethod
    def _targets_are_inner_layers(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = [] if isinstance(targets, str) else targets
        if outer := [name for name in names if name.rpartition(".")[2] in EMBEDDINGS]:
            raise ValueError(f"{outer[0]} cannot have an adapter; only layers between input and output can")
        return targets


class TrainingSettings(Section):
    """One training: data order, step, optimiser, and when to evaluate and save."""

    step: Literal["packed", "trl"] = "packed"
    """`packed`: each prompt computed once, no padding; `trl`: TRL's own step."""
    num_steps: Annotated[int, Field(ge=1)] = 100
    """Optimiser steps."""
    pairs_per_step: Annotated[int, Field(ge=1)] = 16
    """Pairs in one optimiser step, over all workers."""
    max_pair_tokens: Annotated[int, Field(ge=16)] = 1024
    """Tokens of the prompt and the longer answer together."""
    max_batch_tokens: Annotated[int, Field(ge=16)] = 4096
    """Tokens that one forward pass of a worker holds; a longer pair is computed alone."""
    overlong: Literal["drop", "cut_prompt"] = "drop"
    """What happens to a pair above max_pair_tokens: left out, or the prompt cut from its start."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate of AdamW."""
    beta: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the odds-ratio term (lambda in the ORPO paper)."""
    likelihood: Literal["prompt_and_answer", "answer"] = "prompt_and_answer"
    """Tokens whose likelihood is raised: prompt and chosen answer, as TRL does, or the chosen answer alone,
    for prompts that are long and much the same (step: packed)."""
    lora: LoraSettings | None = LoraSettings()
    """Adapters; null trains every weight."""
    qlora: bool = False
    """Hold the frozen weights in 4 bits (NF4); needs a CUDA GPU and the extra `qlora`."""
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of num_steps in which the learning rate rises from 0."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to 0 after the warm-up, if it does."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    max_loss_ratio: Annotated[float, Field(gt=1)] = 4.0
    """A step whose loss is above this many times the first step's loss counts as diverged."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of weights and activations; `auto` is bf16 where the hardware multiplies it natively.
    Trained weights and their optimiser state stay in fp32 unless DeepSpeed holds them."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more time."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Fuse the packed step's passes over memory with torch.compile, which takes some 10-20 s once and
    needs a C++ compiler; `auto`: where there is work enough to win that back."""
    deepspeed: dict[str, Any] | None = None
    """A DeepSpeed config (zero_optimization and so on); batch sizes and optimiser are filled in."""

    eval_at_start: bool = False
    """Evaluate the base model too, as step 0."""
    eval_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations on held-out pairs; null: only at checkpoints and at the end."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints, each with an evaluation; null: only at the end, where one always is."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Latest checkpoints that stay on the worker's disk."""
    logging_steps: Annotated[int, Field(ge=1)] = 10
    """Steps that one log line sums up."""
    tensorboard: bool = False
    """Write TensorBoard event files into the output folder."""
    mlflow: bool = False
    """Log to MLflow, as the MLFLOW_* environment variables say."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Order of the pairs, adapter initialisation, dropout. Not to be set in a run, whose `seed` is used."""

    @field_validator("deepspeed")
    @classmethod
    def _zero_has_its_form(cls, block: dict[str, Any] | None) -> dict[str, Any] | None:
        if block is not None and "zero_optimization" in block:
            check_zero(block["zero_optimization"])
        return block

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.qlora and self.lora is None:
            raise ValueError("qlora: needs a lora block; weights held in 4 bits cannot be trained")
        if self.likelihood == "answer" and self.step == "trl":
            raise ValueError(
                "likelihood: answer needs step: packed; TRL's step counts the prompt's tokens too"
            )
        if self.lora is not None and self.lora.dora and self.lora.dropout:
            raise ValueError("lora.dora: is only supported with lora.dropout 0")
        return self

    @property
    def learns_prompts(self) -> bool:
        """Whether the likelihood term counts the prompt's tokens."""
        return self.likelihood == "prompt_and_answer"


def check_zero(zero: Any) -> None:
    """Raises ValueError, naming the field, for what DeepSpeed's `zero_optimization` cannot be."""
    if not isinstance(zero, dict):
        raise ValueError(f"zero_optimization: must be a mapping, not {_shown(zero)}")
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in range(4):
        raise ValueError(f"zero_optimization.stage: must be 0, 1, 2 or 3, not {_shown(stage)}")
    for name in ("offload_optimizer", "offload_param"):
        if not isinstance(block := zero.get(name), dict | None):
            raise ValueError(f"zero_optimization.{name}: must be a mapping, not {_shown(block)}")


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)[:60]
