"""A base model, or what was trained from it, as one verified GGUF file."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_jobs.export.adapter import base_shapes
from ray_jobs.export.base import BaseModel, default_cache_dir
from ray_jobs.export.errors import ExportError
from ray_jobs.export.families import full_config
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import TensorLayout, layout_of
from ray_jobs.export.gguf_writer import WeightType, plan_tensors, write_gguf
from ray_jobs.export.hashes import remembered_sha256
from ray_jobs.export.manifest import Manifest, Origin, Recipe, versions
from ray_jobs.export.merge import load_merged, merged_state
from ray_jobs.export.metadata import check_metadata
from ray_jobs.export.parity import Parity, check_parity
from ray_jobs.export.quantize import quantize, tensor_formats
from ray_jobs.export.settings import ExportSettings
from ray_jobs.export.trained import Trained, WholeModel, check_trained, trained_sha256
from ray_jobs.export.untouched import Untouched, check_untouched
from ray_jobs.runs import file_sha256

log = logging.getLogger(__name__)

MODEL, MODEL_F16, MANIFEST = "model.gguf", "model-f16.gguf", "manifest.json"


def export_model(
    base: BaseModel,
    trained_dir: Path | None,
    out_dir: Path,
    settings: ExportSettings,
    on_step: Callable[[str], None],
) -> Manifest:
    """Writes `out_dir`/model.gguf and, last, manifest.json; the same inputs give the same model.gguf.

    `trained_dir`: of an adapter or of all weights; None for the base itself. `on_step` is told each step as
    it begins. Before anything is loaded, files that do not belong together raise ModelError or
    ModelMismatch; a file that does not compute what the model does raises ExportError.
    """
    assert settings.quantization != "auto", "settled by with_recipe"
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / MANIFEST).unlink(missing_ok=True)
    template, config = GgufFile(base.gguf), full_config(base.hf_dir)
    layout = layout_of(config, str(base.hf_dir))
    shapes = base_shapes(base.hf_dir)
    plan_tensors(template, shapes, layout)
    check_metadata(template, config, layout)
    trained = None if trained_dir is None else check_trained(trained_dir, shapes, tied=layout.tied)
    cache_dir = default_cache_dir()
    unquantised = out_dir / f".{MODEL_F16}.{os.getpid()}"
    try:
        untouched, parity = _write_unquantised(
            base, trained, template, layout, unquantised, settings, on_step
        )
        _finish(unquantised, out_dir, settings, on_step)
    finally:
        unquantised.unlink(missing_ok=True)
    model = out_dir / MODEL
    manifest = Manifest(
        sha256=file_sha256(model),
        bytes=model.stat().st_size,
        recipe=Recipe(
            settings.quantization,
            settings.pure,
            remembered_sha256(base.gguf, cache_dir),
            tensor_formats(model),
            settings.embedding,
        ),
        base=Origin(base.name, base.revision, base.sha256),
        adapter_sha256=None if trained_dir is None else trained_sha256(trained_dir, cache_dir),
        untouched=untouched,
        parity=parity,
        created_by=versions(),
    )
    manifest.write(out_dir / MANIFEST)
    return manifest


def _write_unquantised(
    base: BaseModel,
    trained: Trained | None,
    template: GgufFile,
    layout: TensorLayout,
    out: Path,
    settings: ExportSettings,
    on_step: Callable[[str], None],
) -> tuple[Untouched, Parity]:
    """The file before quantisation, proven to be the base's relative and to compute what the model does."""
    import torch

    on_step(_loading(trained))
    model = load_merged(base.hf_dir, trained)
    state: dict[str, Any] = merged_state(model)
    on_step("comparing untouched weights with the template")
    untouched = check_untouched(template, state, layout, trained.touched if trained else frozenset())
    dtype: WeightType = "bf16" if settings.quantization == "bf16" else "f16"
    on_step(f"writing {dtype} weights")
    write_gguf(template, state, layout, out, dtype)
    on_step(f"comparing llama.cpp with transformers on {settings.parity_prompts} prompts")
    parity = check_parity(
        model,
        base.hf_dir,
        out,
        dtype,
        num_prompts=settings.parity_prompts,
        num_tokens=settings.parity_tokens,
        threads=torch.get_num_threads(),
    )
    log.info(
        "parity: %d of %d tokens identical, %d near ties, largest logit error %.2g standard deviations",
        parity.identical, parity.tokens, parity.near_ties, parity.max_relative_logit_error,
    )  # fmt: skip
    return untouched, parity


def _loading(trained: Trained | None) -> str:
    if trained is None:
        return "loading the base"
    whole = isinstance(trained, WholeModel)
    return "loading the trained weights" if whole else "merging the adapter into the base"


def _finish(
    unquantised: Path, out_dir: Path, settings: ExportSettings, on_step: Callable[[str], None]
) -> None:
    """model.gguf from the unquantised file, loaded once in a child process."""
    import torch

    from serving.engine.errors import EngineError
    from serving.engine.gguf_check import verify_model

    assert settings.quantization != "auto"
    model = out_dir / MODEL
    if settings.quantization in ("f16", "bf16"):
        os.replace(unquantised, model)
    else:
        on_step(f"quantising to {settings.quantization}")
        quantize(
            unquantised,
            model,
            settings.quantization,
            pure=settings.pure,
            threads=torch.get_num_threads(),
            embedding=settings.embedding,
        )
        if settings.keep_f16:
            os.replace(unquantised, out_dir / MODEL_F16)
    on_step("loading the result in a process of its own")
    try:
        verify_model(model)
    except EngineError as error:
        model.unlink()
        raise ExportError(str(error)) from error
