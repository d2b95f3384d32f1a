"""How an engine is run: typed, frozen, strict."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]


class EngineSettings(BaseModel):
    """Settings of one engine. Every field has a default that works on any machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    backend: Literal["llama_cpp", "openvino", "auto"] = "llama_cpp"
    """What computes. `auto` takes what calibration found fastest for this model on this CPU, else
    llama_cpp."""

    calibration: str | None = None
    """The file that `python -m serving.engine.calibrate` wrote, for `auto` settings; None: beside the model.
    It holds for models of its size on its kind of processor, so also for a tuned copy."""

    cores: Count = 1
    """Physical cores that the engine owns."""

    pin: bool = True
    """Own the cores exclusively on this node and keep the engine's threads on them."""

    core_wait_s: float = Field(default=30.0, ge=0.0, allow_inf_nan=False)
    """Seconds to wait for free cores before CoresUnavailable."""

    lanes: Count | Literal["auto"] = 1
    """Batches that decode side by side, sharing one copy of the weights; the cores are divided between them.
    One lane answers a lone request soonest; a lane per core generates most tokens per second when many
    requests wait. `auto` takes the calibrated number, else a lane per core."""

    slots: Count | Literal["auto"] = "auto"
    """Sequences that decode together in one lane. `auto` takes the calibrated number, else 16."""

    context_tokens: Annotated[int, Field(ge=64)] = 2048
    """Tokens of prompt and answer together that one slot can hold."""

    batch_tokens: Annotated[int, Field(ge=16)] = 512
    """Most tokens in one forward pass: a row for each answer being written, the rest for prompts."""

    prompt_threads: Count | None = None
    """Threads of a lane for prompts; None: the lane's cores."""

    decode_threads: Count | None = None
    """Threads of a lane for answers; None: the lane's cores."""

    kv_type: Literal["auto", "f16", "bf16", "q8_0", "f32"] = "auto"
    """Number format of the key/value cache; q8_0 halves its memory. `auto`: f16; where llama.cpp was compiled
    with AVX512-FP16, whose f16 attention is slow (the engine says so), bf16 unless `deterministic`."""

    flash_attention: bool | Literal["auto"] = "auto"
    """Fused attention. On CPUs llama.cpp's writes answers up to 1.3x as fast as plain matrix products do and
    reads long prompts faster; in bf16 it reads them at half to two thirds of that rate, row by row.
    `auto`: yes, but for bf16 in contexts of more than 1,024 tokens, unless `deterministic` or on a GPU."""

    prefix_cache: bool = True
    """Compute what prompts have in common once."""

    deterministic: bool | Literal["auto"] = False
    """Exact repeatability: an answer does not depend on what is computed beside it, to the last digit. Costs
    nothing where many requests are at work; a lone one decodes more slowly, as it is never computed alone.
    Whether this processor's kernels allow it is tried when the engine is opened. Where they do not, true
    computes one sequence at a time and reuses nothing, and `auto` is the same as false. llama.cpp only."""

    gpu_layers: Annotated[int, Field(ge=-1)] = 0
    """Layers to put on a GPU where the build has one; -1: all."""

    max_queued: Annotated[int, Field(ge=0)] = 0
    """Requests that may wait for a slot before `queue_full`; 0: no limit."""

    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters in GGUF by name; requests choose one with `Request.adapter`."""

    verify: bool = True
    """Load the file in a child process first, so that a bad file cannot end this one."""

    @model_validator(mode="after")
    def _fits_together(self) -> EngineSettings:
        if isinstance(self.lanes, int) and self.lanes > self.cores:
            raise ValueError(f"lanes ({self.lanes}) must not exceed cores ({self.cores})")
        if isinstance(self.slots, int) and self.slots >= self.batch_tokens:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must exceed slots ({self.slots}): "
                "prompts need room beside answers"
            )
        return self
