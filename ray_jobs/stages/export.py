"""The base and what the best trials made of it as GGUF files of one recipe."""

import logging
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.config import Config
from ray_jobs.export.recipe import recipe_name, with_recipe
from ray_jobs.export.trained import trained_files
from ray_jobs.runs import RunFolder, file_sha256
from ray_jobs.stages.adapters import candidate_folder
from ray_jobs.stages.base import Stage, config_inputs
from ray_jobs.stages.base_model import NOTE, base_of
from ray_jobs.stages.begun import INPUTS, ahead_of
from serving.storage.mirror import discard

if TYPE_CHECKING:
    from ray_jobs.export.base import BaseModel

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.export.adapter_gguf import write_adapter_gguf

    base = base_of(config, folder)
    if not taken_up(config, folder):
        make_model(config, folder, base, "base", None)
    outputs = outputs_of(folder, "base")
    for model, relative in candidates(folder).items():
        adapter = folder.path(relative)
        make_model(config, folder, base, model, adapter)
        outputs += outputs_of(folder, model)
        if config.export.adapter:
            outputs.append(f"models/{model}/adapter.gguf")
            write_adapter_gguf(base.hf_dir, adapter, folder.path(outputs[-1]))
            folder.publish(outputs[-1:])
    return outputs


def make_model(
    config: Config, folder: RunFolder, base: "BaseModel", model: str, adapter: Path | None
) -> None:
    """Writes a model's files and publishes them, unless a try that was cut off has."""
    if is_whole(folder, model):
        log.info("export   %s: made before", model)
        return
    write_model(config, folder, base, model, adapter)


def write_model(
    config: Config, folder: RunFolder, base: "BaseModel", model: str, adapter: Path | None
) -> None:
    from ray_jobs.export.export import export_model
    from ray_jobs.export.modelfile import write_modelfile

    engine = config.engine.settings
    export_model(
        base,
        adapter,
        folder.path("models", model),
        with_recipe(config.export, engine.calibration, engine.backend),
        on_step=partial(log.info, "export   %s: %s", model),
    )
    write_modelfile(base.hf_dir, folder.path("models", model), engine.context_tokens)
    folder.publish(outputs_of(folder, model))


FILES = ("model.gguf", "manifest.json", "Modelfile")
"""Of every model; the last one is written last."""


def outputs_of(folder: RunFolder, model: str) -> list[str]:
    """A model's files, with the unquantised one where `export.keep_f16` kept it."""
    from ray_jobs.export.export import MODEL_F16

    kept = [MODEL_F16] if folder.path("models", model, MODEL_F16).is_file() else []
    return [f"models/{model}/{name}" for name in (*FILES, *kept)]


def is_whole(folder: RunFolder, model: str) -> bool:
    """Whether all of a model's files are there, and its weights are those of its manifest."""
    if not all(folder.path("models", model, name).is_file() for name in FILES):
        return False
    recorded = folder.read_json(f"models/{model}/manifest.json")["sha256"]
    return bool(file_sha256(folder.path("models", model, "model.gguf")) == recorded)


def base_ahead(config: Config, folder: RunFolder) -> None:
    """The base's files before the trials are done, unless they are there."""
    inner, inputs = ahead_of(folder), inputs_of_base(config, folder)
    if not made_from(inner, inputs):
        write_model(config, inner, base_of(config, folder), "base", None)
        inner.write_json(INPUTS, inputs)


def taken_up(config: Config, folder: RunFolder) -> bool:
    """Puts the base's files into their place, if they were made ahead and from the stage's inputs."""
    inner = ahead_of(folder)
    if not made_from(inner, inputs_of_base(config, folder)):
        return False
    shutil.rmtree(folder.path("models/base"), ignore_errors=True)
    folder.path("models").mkdir(exist_ok=True)
    os.replace(inner.path("models/base"), folder.path("models/base"))
    folder.publish(outputs_of(folder, "base"))
    discard(inner.path("models"))
    log.info("export   base: made while the trials trained")
    return True


def made_from(inner: RunFolder, inputs: Mapping[str, str]) -> bool:
    """Whether the base's files are there and were made from these inputs."""
    noted = inner.path(INPUTS).is_file() and inner.read_json(INPUTS) == inputs
    return noted and is_whole(inner, "base")


def inputs_of_base(config: Config, folder: RunFolder) -> dict[str, str]:
    files = {name: file_sha256(folder.path(name)) for name in STAGE.needs}
    return config_inputs(STAGE, config) | files


def candidates(folder: RunFolder) -> dict[str, str]:
    """Candidate -> the folder of its adapter or weights, the best trial's first."""
    found = {"candidate": candidate_folder(1)}
    while folder.path(candidate_folder(len(found) + 1)).is_dir():
        number = len(found) + 1
        found[f"candidate-{number}"] = candidate_folder(number)
    return found


def candidate_files(folder: RunFolder) -> tuple[str, ...]:
    kept = candidates(folder).values()
    return tuple(f"{relative}/{name}" for relative in kept for name in trained_files(folder.path(relative)))


def recipe_inputs(config: Config) -> dict[str, str]:
    """The number format that `auto` stands for now."""
    if config.export.quantization != "auto":
        return {}
    engine = config.engine.settings
    chosen = with_recipe(config.export, engine.calibration, engine.backend)
    return {"export.recipe": recipe_name(chosen)}


STAGE = Stage(
    name="export",
    settings=("export", "model"),
    needs=(NOTE,),
    folders=("models",),
    run=run,
    extra_inputs=recipe_inputs,
    more_needs=candidate_files,
)
