"""Which model is tuned, and how it becomes a GGUF file."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_jobs.settings import Section

EmbeddingFormat = Literal["f16", "bf16", "q8_0", "q6_k", "q4_0"]
Quantization = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_1", "q4_0"]


class ModelSettings(Section):
    """The base model."""

    base: Annotated[str, Field(min_length=1)]
    """`bundled:smollm2-135m-instruct`, a hub ID (`meta-llama/Llama-3.2-1B-Instruct`), a folder of safetensors
    weights with their tokenizer, or a GGUF file; both may lie in an object store (`s3://bucket/models/mine`)."""
    revision: str | None = None
    """Commit, tag or branch of a hub base; a commit makes the run repeatable."""
    gguf: str | None = None
    """GGUF of the base, whose metadata and tokenizer are kept: a path, a URI, or `repo_id:file.gguf` on the
    hub. None where the base itself is bundled or a GGUF; otherwise one is written from the tokenizer."""
    gguf_revision: str | None = None
    """Commit, tag or branch of a hub GGUF."""


class ExportSettings(Section):
    """The one recipe by which base and candidate become GGUF files."""

    quantization: Quantization | Literal["auto"] = "q4_0"
    """Number format of the weights. q4_0 computes fastest on CPUs; q8_0 stays closest to the original. `auto`
    takes the fastest in the file that `engine.settings.calibration` names; q4_0 if it names none."""
    min_greedy_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """With `auto`: the share of the unquantised model's greedy tokens that a number format must keep."""
    pure: bool = False
    """Quantise the token embedding and the output layer like the rest: faster, and less exact. `auto` decides
    this too."""
    embedding: EmbeddingFormat | None = None
    """Number format of the token embedding and the output layer; None: llama.cpp's choice. On processors
    with AVX512-BF16 `bf16` is no slower than that. `auto` decides this too."""
    parity_prompts: Annotated[int, Field(ge=1, le=8)] = 4
    """Chat prompts on which llama.cpp must choose the tokens that transformers chooses."""
    parity_tokens: Annotated[int, Field(ge=1, le=256)] = 32
    """Tokens compared per prompt; fewer where the model ends its answer."""
    keep_f16: bool = False
    """Keep the unquantised file as `model-f16.gguf` beside `model.gguf`."""
    adapter: bool = False
    """Write a candidate's adapter as `adapter.gguf` too: a small file to be loaded beside the base."""

    @model_validator(mode="after")
    def _embedding_of_a_quantised_file(self) -> Self:
        if self.embedding is not None and self.quantization in ("f16", "bf16"):
            raise ValueError(f"embedding: {self.quantization} files are {self.quantization} throughout")
        return self
