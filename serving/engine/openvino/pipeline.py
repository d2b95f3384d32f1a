"""OpenVINO GenAI's continuous-batching pipeline, opened for a GGUF file and asked in our terms."""

from __future__ import annotations

import importlib
from typing import Any

from serving.engine.errors import ModelLoadError, ModelMismatch, RequestError
from serving.engine.settings import EngineSettings
from serving.engine.types import Request, Sampling

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""What the pinned release reads from GGUF."""

_KV_PRECISION = {"auto": None, "f16": "f16", "bf16": "bf16", "f32": "f32", "q8_0": "u8"}


def open_pipeline(
    path: str, architecture: str | None, settings: EngineSettings, cache_gb: int, *, pin: bool = False
) -> Any:
    """`pin`: let the library keep each of its threads on one processor of all that the process may use.

    Raises ModelMismatch for what it cannot read, or without the extra; ModelLoadError if it fails.
    """
    if architecture not in ARCHITECTURES:
        raise ModelMismatch(
            f"{path}: openvino reads {', '.join(ARCHITECTURES)}, not {architecture}; use llama_cpp"
        )
    try:
        import openvino_genai
    except ImportError as error:
        raise ModelMismatch(f"the openvino backend needs the extra `openvino`: {error}") from error
    properties: dict[str, object] = {"INFERENCE_NUM_THREADS": settings.cores, "ENABLE_CPU_PINNING": pin}
    precision = _KV_PRECISION[settings.kv_type]
    if precision is not None:
        properties["KV_CACHE_PRECISION"] = precision
    scheduling = _scheduling(openvino_genai, settings, cache_gb)
    try:
        return openvino_genai.ContinuousBatchingPipeline(path, scheduling, "CPU", properties, {})
    except RuntimeError as error:
        raise ModelLoadError(f"{path}: openvino cannot load it: {last_line(error)}") from error


def check_request(request: Request) -> None:
    """Raises RequestError `unsupported` for what this backend does not have, naming it."""
    sampling = request.sampling
    missing = {
        "logit_bias": bool(sampling.logit_bias),
        "top_logprobs above 0": bool(sampling.top_logprobs),
        "an adapter": request.adapter is not None,
        "scores of prompts": request.scores_prompt,
    }
    for name, asked in missing.items():
        if asked:
            raise RequestError("unsupported", f"the openvino backend has no {name}; use llama_cpp")


def generation_config(
    sampling: Sampling, grammar: str | None, end_tokens: frozenset[int], max_tokens: int
) -> Any:
    """Our sampling as a GenerationConfig; `grammar` is GBNF, which its grammar compiler (XGrammar) reads.

    Stop strings are watched by us, in every backend alike.
    """
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.stop_token_ids = set(end_tokens) | set(sampling.stop_token_ids)
    config.do_sample = not sampling.is_greedy
    if config.do_sample:
        config.temperature, config.top_p, config.min_p = sampling.temperature, sampling.top_p, sampling.min_p
        config.rng_seed = sampling.seed
        if sampling.top_k:
            config.top_k = sampling.top_k
    config.repetition_penalty = sampling.repeat_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    config.logprobs = 0 if sampling.top_logprobs is None else 1
    if grammar is not None:
        structure = openvino_genai.StructuredOutputConfig()
        structure.grammar = grammar
        config.structured_output_config = structure
    return config


def generation_status() -> Any:
    """The library's names of what a request may be: RUNNING, FINISHED, …"""
    import openvino_genai

    return openvino_genai.GenerationStatus


def as_tensor(array: Any) -> Any:
    """An array as OpenVINO's tensor."""
    return importlib.import_module("openvino").Tensor(array)


def _scheduling(genai: Any, settings: EngineSettings, cache_gb: int) -> Any:
    scheduling = genai.SchedulerConfig()
    scheduling.max_num_batched_tokens = settings.batch_tokens
    scheduling.dynamic_split_fuse = True
    scheduling.enable_prefix_caching = settings.prefix_cache
    scheduling.max_num_seqs = settings.slots
    scheduling.cache_size = cache_gb
    return scheduling


def last_line(error: BaseException) -> str:
    """Of the error's text: what it is about; before it stand paths of the library's build."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
