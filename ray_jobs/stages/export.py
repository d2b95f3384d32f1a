"""The base and the best adapter as GGUF files of one recipe."""

import logging
from functools import partial

from ray_jobs.config import Config
from ray_jobs.export.recipe import recipe_name, with_recipe
from ray_jobs.runs import RunFolder
from ray_jobs.stages.base import Stage
from ray_jobs.stages.tune import ADAPTER_FILES, candidate_folder

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.export.adapter_gguf import write_adapter_gguf
    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.export import export_model
    from ray_jobs.export.modelfile import write_modelfile

    base = resolve_base(config.model, default_cache_dir())
    engine = config.engine.settings
    settings = with_recipe(config.export, engine.calibration, engine.backend)
    outputs = []
    adapters = [(model, folder.path(adapter)) for model, adapter in candidates(folder).items()]
    for model, adapter in (("base", None), *adapters):
        export_model(
            base,
            adapter,
            folder.path("models", model),
            settings,
            on_step=partial(log.info, "export   %s: %s", model),
        )
        write_modelfile(base.hf_dir, folder.path("models", model), config.engine.settings.context_tokens)
        outputs += [f"models/{model}/{name}" for name in ("model.gguf", "manifest.json", "Modelfile")]
        if adapter is not None and config.export.adapter:
            outputs.append(f"models/{model}/adapter.gguf")
            write_adapter_gguf(base.hf_dir, adapter, folder.path(outputs[-1]))
        folder.publish(outputs)
    return outputs


def candidates(folder: RunFolder) -> dict[str, str]:
    """Candidate -> the folder of its adapter, the best trial's first."""
    found = {"candidate": candidate_folder(1)}
    while folder.path(candidate_folder(len(found) + 1)).is_dir():
        number = len(found) + 1
        found[f"candidate-{number}"] = candidate_folder(number)
    return found


def adapter_files(folder: RunFolder) -> tuple[str, ...]:
    return tuple(f"{adapter}/{name}" for adapter in candidates(folder).values() for name in ADAPTER_FILES)


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
    needs=("data/base.json",),
    folders=("models",),
    run=run,
    extra_inputs=recipe_inputs,
    more_needs=adapter_files,
)
