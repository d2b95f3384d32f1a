"""The base and the best adapter as GGUF files of one recipe."""

import logging
from functools import partial

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.stages.base import Stage

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.export import export_model
    from ray_jobs.export.modelfile import write_modelfile

    base = resolve_base(config.model, default_cache_dir())
    outputs = []
    for model, adapter in (("base", None), ("candidate", folder.path("tune/best"))):
        export_model(
            base,
            adapter,
            folder.path("models", model),
            config.export,
            on_step=partial(log.info, "export   %s: %s", model),
        )
        write_modelfile(base.hf_dir, folder.path("models", model), config.engine.settings.context_tokens)
        outputs += [f"models/{model}/{name}" for name in ("model.gguf", "manifest.json", "Modelfile")]
    return outputs


STAGE = Stage(
    name="export",
    settings=("export", "model"),
    needs=(
        "data/base.json",
        "tune/best/adapter_model.safetensors",
        "tune/best/adapter_config.json",
    ),
    folders=("models",),
    run=run,
)
